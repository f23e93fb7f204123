"""Versions and hardware to record with a result. Does not import the ops."""

import datetime
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import re
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

from .version import __version__

#: The packages whose versions matter, by import name: distributions that provide each.
PACKAGES = {
    'torchvision': ('torchvision',),
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
#: Other distributions whose versions affect a measurement.
MEASURED_WITH = ('triton', 'mamba-ssm')


def describe_run(device: torch.device) -> dict[str, Any]:
    """Return the header of a file of results: date, device, machine and versions."""
    names = (*MEASURED_WITH, *itertools.chain.from_iterable(PACKAGES.values()))
    versions = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        mmvmamba=__version__,
        cuda=torch.version.cuda,
        **{name: installed_version(name) for name in names},
    )
    return dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='minutes'),
        device=device.type,
        machine=describe_machine(device),
        versions={name: version for name, version in versions.items() if version},
    )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the processor and the GPU, if the device is one."""
    path = Path('/proc/cpuinfo')
    cpu = re.search(r'model name\s*: (.+)', path.read_text()) if path.exists() else None
    machine = dict(
        cpu=cpu[1].strip() if cpu else platform.processor() or platform.machine(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )
    if device.type == 'cuda':
        gpu = torch.cuda.get_device_properties(device)
        machine |= dict(gpu=gpu.name, gpu_memory_gib=round(gpu.total_memory / 2**30, 1))
    return machine


def available_cores() -> int | None:
    """Return the number of CPU cores that this process may use, or None if it is unknown."""
    affinity = getattr(os, 'sched_getaffinity', None)
    return len(affinity(0)) if affinity else os.cpu_count()


def mmcv_is_compiled() -> bool:
    """Return True if the installed mmcv has its own compiled ops.

    Looks at the files alone: the import of mmcv takes seconds and may fail.
    """
    mmcv = importlib.util.find_spec('mmcv')
    folders = mmcv.submodule_search_locations if mmcv else None
    return folders is not None and PathFinder.find_spec('mmcv._ext', folders) is not None


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
