"""The steps of ``gpu_check.sh``, a module each.

A result is a row of JSON with its item, a status ('passed', 'failed' or 'skipped') and, unless it
passed, the reason. On a CPU the same code runs at small sizes; CUDA-only items are skipped.
"""

from gpu_steps.context import RESTART, Step

__all__ = ['BACKBONE_SETTINGS', 'DEPTHS', 'OP_SETTINGS', 'RESTART', 'STEPS', 'Step']

INPUTS = ('benchmarks/op_inputs.py',)
TIMING = ('benchmarks/common.py', 'benchmarks/ops.py', 'benchmarks/backbone.py')
#: An item may have to compile its Triton kernels, a minute or more.
STEPS = {
    1: Step('build and load', 'build', limit=240, item_seconds=220, stop_at_failure=True),
    2: Step('exactness', 'exactness', limit=180, item_seconds=120, files=INPUTS),
    3: Step(
        'tests', 'tests', limit=240, item_seconds=120, threads=1, files=('tests/test_ops/*.py',)
    ),
    4: Step(
        'sanitizers',
        'sanitizers',
        limit=300,
        item_seconds=150,
        may_skip=True,
        files=(*INPUTS, 'benchmarks/sanitize_ops.py'),
    ),
    5: Step('op table', 'op_table', limit=240, item_seconds=150, files=TIMING),
    6: Step('backbones', 'backbones', limit=360, item_seconds=150, files=TIMING),
    7: Step('sweeps', 'sweeps', limit=200, item_seconds=100, files=INPUTS),
}

#: Precision, image size and batch size of the op table.
OP_SETTINGS = [
    ('fp16', '224', 128),
    ('fp16', '512', 4),
    ('fp16', '800x1333', 1),
    ('fp32', '224', 128),
]
#: Image size, batch size, mode and run of the backbones, the compiled ones last.
BACKBONE_SETTINGS = [
    (size, batch, mode, run)
    for run, size, batch in (('eager', '224', 128), ('eager', '512', 16), ('compiled', '224', 128))
    for mode in ('inference', 'train')
]
#: Blocks in each stage of VMamba-T.
DEPTHS = (2, 2, 8, 2)
