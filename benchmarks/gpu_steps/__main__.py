"""Run one step in this process: ``python -m gpu_steps 2 --out DIR``, in the folder benchmarks/."""

import argparse
import ctypes
import faulthandler
import importlib
import logging
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_steps import STEPS
from gpu_steps.context import Context, run_items

PR_SET_PDEATHSIG = 1


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition(':')[0])
    add = parser.add_argument
    add('step', type=int, choices=STEPS, help='which step')
    add('--out', type=Path, required=True, help='the folder of the run')
    add('--device', choices=('cuda', 'cpu'), default='cuda', help='where to run')
    add('--seconds', type=float, default=math.inf, help='time limit for starting items')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a step and return its exit status."""
    args = parse_args(argv)
    faulthandler.enable()
    if sys.platform == 'linux':  # end with gpu_check.py even if that is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.basicConfig(
        level=logging.INFO, format='[%(asctime)s] %(message)s', datefmt='%H:%M:%S', force=True
    )
    step = STEPS[args.step]
    context = Context(args.step, step, args.out, args.device, args.seconds)
    module = importlib.import_module(f'gpu_steps.{step.module}')
    if hasattr(module, 'run'):
        return module.run(context)
    return run_items(context, module.items(context))


if __name__ == '__main__':
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors may abort after CUDA failed, which would hide the status.
    os._exit(status)
