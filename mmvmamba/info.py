"""Installed versions and chosen backends: ``python -m mmvmamba.info``.

With ``--warm-up``, the command instead compiles the Triton kernels of a model before its first
call. Triton caches them on disk.
"""

import argparse
import importlib
import itertools
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .environment import PACKAGES, describe_machine, installed_version, mmcv_is_compiled
from .ops import extension_error, has_kernel
from .ops.backend import AUTO_ORDER, FLOAT_DTYPES, TRITON_DTYPES, why_not
from .ops.extension import build_info
from .ops.triton import package_error
from .version import __version__

_FORMS = {
    'native': 'native kernels',
    'triton': 'Triton kernels',
    None: 'the chunked PyTorch implementation',
}
#: Sides of maps that take the kernels for up to 64 positions, for up to 224, and for more.
_MAP_SIDES = (7, 14, 20)


def files() -> dict[str, str]:
    """Return the folders of the package and of its tools, configs and demo."""
    package = Path(__file__).resolve().parent
    tools = package / '.mim'
    return {
        'package': str(package),
        'tools and configs': str(tools) if tools.is_dir() else 'not installed',
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those around it."""
    cuda = torch.version.cuda or torch.version.hip or 'none'
    found = {
        'mmvmamba': __version__,
        'python': platform.python_version(),
        'torch': f'{torch.__version__} (CUDA: {cuda})',
        'triton': package_error() or importlib.import_module('triton').__version__,
    }
    ops = 'compiled ops' if mmcv_is_compiled() else 'without compiled ops'
    for package, names in PACKAGES.items():
        notes = f', {ops}' if package == 'mmcv' else ''
        installed = (
            f'{version} ({name}{notes})' for name in names if (version := installed_version(name))
        )
        found[package] = next(installed, 'not installed')
    return found


def extension() -> dict[str, str]:
    """Return the state of the extension: loaded or why not, and how it was built."""
    info = build_info()
    reason = extension_error()
    built = {'loaded': 'yes' if reason is None else f'no: {reason}'}
    if 'torch' in info:
        built['built with torch'] = info['torch']
    if reason is None:
        built['CUDA kernels'] = f'no: {extension_error("cuda")}'
    if has_kernel('ss2d_scan', 'cuda'):
        architectures = ', '.join(info.get('arch_list', [])) or 'unknown'
        built['CUDA kernels'] = f'CUDA {info.get("cuda")}, architectures {architectures}'
    return built


def machine() -> dict[str, str]:
    """Return the processor and the GPUs of this machine."""
    cpu = describe_machine(torch.device('cpu'))
    out = {
        'system': f'{platform.system()} {platform.machine()}',
        'CPU': f'{cpu["threads"]} threads, {cpu["cpu_capability"]}',
    }
    if extension_error() is None:
        out['CPU kernels'] = torch.ops.mmvmamba.cpu_isa()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        out[f'GPU {index}'] = f'{torch.cuda.get_device_name(index)}, architecture {major}.{minor}'
    if not torch.cuda.is_available():
        out['GPU'] = 'none visible to PyTorch'
    return out


def backends() -> dict[str, str]:
    """Return the backend that 'auto' chooses on each device, with its dtypes or why it is slow."""
    devices = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
    return {name: _backend(torch.device(name)) for name in devices}


def _backend(device: torch.device) -> str:
    order = AUTO_ORDER[device.type]
    dtypes: dict[str, list[str]] = {}
    for dtype in FLOAT_DTYPES:
        able = (name for name in order if why_not(name, 'ss2d_scan', device, dtype) is None)
        dtypes.setdefault(_FORMS[next(able, None)], []).append(str(dtype).removeprefix('torch.'))
    text = '; '.join(f'{form} for {", ".join(names)}' for form, names in dtypes.items())
    reasons = ((name, why_not(name, 'ss2d_scan', device)) for name in order)
    missing = '; '.join(f'{name}: {reason}' for name, reason in reasons if reason)
    return f'{text} ({missing})' if missing else text


def report() -> str:
    """Return the whole report as text."""
    parts = {
        'versions': versions(),
        'extension': extension(),
        'machine': machine(),
        'backends': backends(),
        'files': files(),
    }
    lines = []
    for title, values in parts.items():
        lines += [title, *(f'  {name:<17} {value}' for name, value in values.items())]
    return '\n'.join(lines)


def warm_up(arch: str, dtype: torch.dtype) -> Iterator[str]:
    """Compile the forward and backward Triton kernels of a model's scans for this GPU.

    Args:
        arch (str): A key of :data:`mmvmamba.nn.ARCHS`.
        dtype (torch.dtype): float32, or the dtype of autocast.

    Yields:
        str: One line for the compilation, then one for each map of each stage, with the time of its
        first step.

    Raises:
        ValueError: If ``arch`` is unknown.
    """
    from .nn import SS2D, resolve_arch  # the report needs the ops alone
    from .ops.triton import launch
    from .ops.triton.compilation import compile_kernels

    settings = resolve_arch(arch)

    def run(dim: int, side: int) -> SS2D:
        layer = SS2D(dim, backend='triton', **settings.ssm_settings).cuda()
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            y = layer(torch.randn(1, side, side, dim, device='cuda'))
        y.sum().backward()
        torch.cuda.synchronize()
        return layer

    start = time.perf_counter()
    with launch.recording() as launches:
        for dim, side in itertools.product(settings.dims, _MAP_SIDES):
            run(dim, side)
    results = list(compile_kernels(launches, launch.device_target(torch.device('cuda'))))
    yield f'{len(results)} kernels compiled in parallel: {time.perf_counter() - start:.1f} s'
    # The steps below compile these kernels, or raise the errors.
    for error in dict.fromkeys(error for _, error in results if error is not None):
        yield f'not compiled: {error}'
    for (stage, dim), side in itertools.product(enumerate(settings.dims), _MAP_SIDES):
        start = time.perf_counter()
        layer = run(dim, side)
        yield (
            f'stage {stage}: map {side} x {side}, {layer.d_inner} channels, d_state '
            f'{layer.d_state}, rank {layer.dt_rank}: {time.perf_counter() - start:.1f} s'
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report, or the progress of the compilation, to the standard output."""
    parser = argparse.ArgumentParser(
        prog='python -m mmvmamba.info',
        description='Print installed versions and selected backends.',
    )
    parser.add_argument(
        '--warm-up',
        metavar='MODEL',
        nargs='?',
        const='tiny',
        help="compile the Triton kernels of a model (default: 'tiny') for this GPU and cache them",
    )
    names = [str(dtype).removeprefix('torch.') for dtype in TRITON_DTYPES]
    parser.add_argument(
        '--dtype',
        choices=names,
        default='float16',
        help='autocast dtype for --warm-up, or float32 to disable autocast (default: float16)',
    )
    args = parser.parse_args(argv)
    if args.warm_up is None:
        sys.stdout.write(report() + '\n')
        return
    if reason := why_not('triton', 'ss2d_scan', torch.device('cuda')):
        parser.error(f'--warm-up: the Triton kernels cannot run: {reason}')
    start = time.perf_counter()
    try:
        for line in warm_up(args.warm_up, getattr(torch, args.dtype)):
            sys.stdout.write(line + '\n')
    except ValueError as error:
        parser.error(f'--warm-up: {error}')
    sys.stdout.write(f'{args.warm_up}, {args.dtype}: {time.perf_counter() - start:.1f} s\n')


if __name__ == '__main__':
    main()
