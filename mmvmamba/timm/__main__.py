"""Run a script of timm, such as its train.py, with the models registered."""

import os
import sys

from mmvmamba.script import run_script

_USAGE = 'usage: python -m mmvmamba.timm SCRIPT [ARGS ...], e.g. train.py DATA --model vmamba_tiny'


def main() -> None:
    """Run ``python SCRIPT ARGS ...`` in this process."""
    if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
        sys.exit(_USAGE)
    script = sys.argv[1]
    if not os.path.isfile(script):
        sys.exit(f'{_USAGE}\nSCRIPT must be a file, but got {script!r}')
    run_script(script, sys.argv[2:], 'mmvmamba.timm')


if __name__ == '__main__':
    main()
