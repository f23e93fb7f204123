"""Ten calls of the ops, forward and backward, to be run under compute-sanitizer.

Small sizes that reach each path: all dtypes, one and many states, blocks that are not full,
sequences of many segments, groups, gates and constant B and C. Requires only torch.

Each tensor is an allocation of its own, so that memcheck also sees overruns within what would be a
cached block. ``benchmarks/gpu_check.sh`` (step 4) runs this under each tool.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence

# Read when torch is imported.
os.environ.setdefault('PYTORCH_NO_CUDA_MEMORY_CACHING', '1')

import torch  # noqa: E402
from op_inputs import Inputs, run, selective_inputs, ss2d_inputs  # noqa: E402

from mmvmamba.ops import selective_scan, ss2d_scan  # noqa: E402


def calls(device: torch.device, backend: str) -> Iterator[tuple[Callable, Inputs]]:
    """List functions and inputs, in another dtype where the kernels do not take the usual one."""
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16
    double = torch.float32 if backend == 'triton' else torch.float64
    scan = functools.partial(ss2d_scan, backend=backend)
    yield scan, ss2d_inputs(2, (9, 29), 40, 6, half, device)
    yield scan, ss2d_inputs(1, (14, 14), 384, 24, torch.bfloat16, device)
    yield scan, ss2d_inputs(2, (20, 33), 100, 3, torch.float32, device)
    yield scan, ss2d_inputs(2, (7, 7), 70, 2, torch.float32, device, d_state=5)
    yield scan, ss2d_inputs(1, (5, 13), 33, 2, double, device, d_state=3)
    yield scan, ss2d_inputs(1, (30, 100), 32, 6, half, device)
    three = functools.partial(scan, pattern=(2, 2, 1))
    yield three, ss2d_inputs(1, (11, 6), 17, 70, torch.float32, device, directions=3)
    scan = functools.partial(selective_scan, delta_softplus=True, backend=backend)
    yield scan, selective_inputs(2, 500, 12, half, device, d_state=16, groups=2, gate=True)
    yield scan, selective_inputs(1, 129, 34, torch.float32, device, d_state=2, groups=None)
    yield scan, selective_inputs(2, 70, 6, torch.bfloat16, device, groups=6)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), default='cuda', help='device to run on'
    )
    parser.add_argument('--backend', default='native', help='backend of the ops')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the calls and return 1 if a result is not finite."""
    args = parse_args(argv)
    torch.manual_seed(0)
    for function, inputs in calls(torch.device(args.device), args.backend):
        for name, value in run(function, inputs).items():
            if not value.isfinite().all():
                sys.stderr.write(f'{name} is not finite\n')
                return 1
    sys.stdout.write('ten calls, all results finite\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
