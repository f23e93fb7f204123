"""The steps of ``gpu_check.sh``, a module each.

A result is a row of JSON with its item, a status ('passed', 'failed' or 'skipped') and, unless it
passed, the reason. On a CPU the same code runs at small sizes; CUDA-only items are skipped.
"""

from typing import NamedTuple

from gpu_steps.context import RESTART, Step

__all__ = [
    'BACKBONE_SETTINGS',
    'DEPTHS',
    'OP_SETTINGS',
    'RESTART',
    'STEPS',
    'BackboneSetting',
    'Step',
]

INPUTS = ('benchmarks/op_inputs.py',)
TIMING = ('benchmarks/common.py', 'benchmarks/ops.py', 'benchmarks/backbone.py')
#: The first item of a step may have to compile its Triton kernels, a minute or more.
STEPS = {
    1: Step('build and load', 'build', limit=240, item_seconds=220, stop_at_failure=True),
    2: Step('exactness', 'exactness', limit=180, item_seconds=120, files=INPUTS),
    3: Step(
        'tests', 'tests', limit=300, item_seconds=120, threads=1, files=('tests/test_ops/*.py',)
    ),
    4: Step(
        'sanitizers',
        'sanitizers',
        limit=300,
        item_seconds=150,
        may_skip=True,
        files=(*INPUTS, 'benchmarks/sanitize_ops.py'),
    ),
    5: Step('op table', 'op_table', limit=300, item_seconds=150, files=TIMING),
    6: Step('backbones', 'backbones', limit=480, item_seconds=150, files=TIMING),
    7: Step('sweeps', 'sweeps', limit=200, item_seconds=100, files=INPUTS),
    8: Step('counters', 'counters', limit=200, item_seconds=120, may_skip=True, files=INPUTS),
}


class BackboneSetting(NamedTuple):
    """A comparison of backbones.

    Args:
        scale (str): 't', 's' or 'b'.
        size (str): The image size, such as '224' or '800x1333'.
        batch (int): The batch size.
        mode (str): 'inference' or 'train'.
        precision (str): 'amp', or 'fp32' with TF32.
        run (str): 'eager' or 'compiled'.
    """

    scale: str
    size: str
    batch: int
    mode: str
    precision: str
    run: str

    def __str__(self) -> str:
        return (
            f'{self.scale.upper()}, {self.mode}, {self.size}, batch {self.batch}, '
            f'{self.precision}, {self.run}'
        )


#: Precision, image size and batch size of the op table.
OP_SETTINGS = [
    ('fp16', '224', 128),
    ('fp16', '512', 4),
    ('fp16', '800x1333', 2),
    ('fp32', '224', 128),
    ('fp16', '224', 1),
    ('fp16', '800x1333', 1),
    ('fp16', '1024', 1),
    ('fp16', '2048', 1),
]
#: The most important comparisons come first, and the compiled ones, which take minutes, last.
BACKBONE_SETTINGS = [
    BackboneSetting(scale, size, batch, mode, precision, run)
    for scale, size, batch, precision, run in (
        ('t', '224', 128, 'amp', 'eager'),
        ('t', '512', 16, 'amp', 'eager'),
        ('t', '800x1333', 2, 'amp', 'eager'),
        ('t', '224', 128, 'fp32', 'eager'),
        ('s', '224', 128, 'amp', 'eager'),
        ('b', '224', 128, 'amp', 'eager'),
        ('t', '1024', 4, 'amp', 'eager'),
        ('t', '2048', 1, 'amp', 'eager'),
        ('t', '224', 128, 'amp', 'compiled'),
        ('t', '512', 16, 'amp', 'compiled'),
    )
    for mode in ('inference', 'train')
]
#: Blocks in each stage of VMamba-T.
DEPTHS = (2, 2, 8, 2)
