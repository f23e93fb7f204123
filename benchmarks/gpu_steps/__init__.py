"""The steps of ``gpu_check.sh``, a module each.

A result is a row of JSON with its item, a status ('passed', 'failed' or 'skipped') and, if it did
not pass, the reason. On a CPU the same code runs at small sizes; what needs CUDA is skipped.
"""

from gpu_steps.context import RESTART, Step

__all__ = ['RESTART', 'STEPS', 'Step']

STEPS = {
    1: Step('build and load', 'build', limit=240, item_seconds=240),
    2: Step('exactness', 'exactness', limit=90, item_seconds=60),
    3: Step('tests', 'tests', limit=180, item_seconds=90),
    4: Step('sanitizers', 'sanitizers', limit=120, item_seconds=120, may_skip=True),
    5: Step('op table', 'op_table', limit=180, item_seconds=120),
    6: Step('backbones', 'backbones', limit=300, item_seconds=300),
    7: Step('sweeps', 'sweeps', limit=150, item_seconds=150),
}
