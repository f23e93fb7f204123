"""Registration of the scans with MMEngine's FLOP counters, which mmdet's ``get_flops.py`` uses."""

from functools import partial
from typing import Any

import torch
from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import generic_activation_jit, get_shape
from torch.utils.flop_counter import flop_registry

import mmvmamba.ops  # noqa: F401  (registers the formulas of the scans)


def count_scan(name: str, inputs: list[Any], outputs: list[Any]) -> int:
    """Return the multiply-adds of a scan in a trace, half the FLOPs that PyTorch counts."""
    arguments = (
        get_shape(value) if value.type().kind() == 'TensorType' else value.toIValue()
        for value in inputs
    )
    return flop_registry[getattr(torch.ops.mmvmamba, name)](*arguments) // 2


# MMEngine's FlopAnalyzer and ActivationAnalyzer count these by default.
for _name in (
    'ss2d_scan', 'ss2d_scan_triton', 'selective_scan', 'selective_scan_triton', 'scan_mark',
):  # fmt: skip
    _op = f'mmvmamba::{_name}'
    complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[_op] = partial(count_scan, _name)
    complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS[_op] = generic_activation_jit()
