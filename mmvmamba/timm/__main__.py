"""Run a script of timm, such as its train.py, with the models registered."""

import os
import runpy
import sys

import mmvmamba.timm  # noqa: F401  (registers the models)

_USAGE = 'usage: python -m mmvmamba.timm SCRIPT [ARGS ...], e.g. train.py DATA --model vmamba_tiny'


def main() -> None:
    """Run ``python SCRIPT ARGS ...`` in this process."""
    if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
        sys.exit(_USAGE)
    script = sys.argv[1]
    if not os.path.isfile(script):
        sys.exit(f'{_USAGE}\nSCRIPT must be a file, but got {script!r}')
    sys.argv = sys.argv[1:]
    if not getattr(sys.flags, 'safe_path', False):  # Python 3.11
        sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
