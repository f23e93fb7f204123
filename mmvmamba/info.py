"""Installed versions and chosen backends: ``python -m mmvmamba.info``."""

import platform
import sys
from pathlib import Path

import torch

from .environment import PACKAGES, describe_machine, installed_version, mmcv_is_compiled
from .ops import extension_error, has_kernel
from .ops.backend import NATIVE_DTYPES
from .ops.extension import architecture_error, build_info
from .version import __version__


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


def why_not_native(device: torch.device) -> str | None:
    """Return the reason why the native kernels cannot run on a device, or None."""
    if not has_kernel('ss2d_scan', device.type):
        return extension_error(device.type) or f'built without {device.type} kernels'
    if device.type != 'cuda':
        return None
    return architecture_error(device.index) if torch.cuda.is_available() else 'there is no GPU'


def _backend(device: torch.device) -> str:
    slow = 'the chunked PyTorch form'
    if reason := why_not_native(device):
        return slow if extension_error() else f'{slow}: {reason}'
    names = ', '.join(str(dtype).removeprefix('torch.') for dtype in NATIVE_DTYPES[device.type])
    return f'native kernels for {names}; {slow} for others'


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


def main() -> None:
    """Write the report to the standard output."""
    sys.stdout.write(report() + '\n')


if __name__ == '__main__':
    main()
