"""The scans in MMEngine's counters, which the ``get_flops.py`` of mmdet, mmseg and others use."""

from __future__ import annotations

from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import generic_activation_jit, get_shape

from mmvmamba.ops.flops import scan_mark_cost, selective_scan_cost, ss2d_scan_cost


def ss2d_scan_flop_jit(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts ``mmvmamba::ss2d_scan`` in a trace; one multiply-add is one."""
    return ss2d_scan_cost(*(get_shape(inputs[i]) for i in (0, 2, 4)))


def selective_scan_flop_jit(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts ``mmvmamba::selective_scan`` in a trace; one multiply-add is one."""
    skip, gate = (not inputs[i].type().kind() == 'NoneType' for i in (5, 6))
    return selective_scan_cost(get_shape(inputs[0]), get_shape(inputs[2]), skip, gate)


def scan_mark_flop_jit(inputs: list[Any], outputs: list[Any]) -> int:
    """Counts a scan that ran as PyTorch's own ops; the projection of its steps is counted there."""
    return scan_mark_cost(get_shape(inputs[0]), get_shape(inputs[1]), inputs[3].toIValue())


def register_flop_handles() -> None:
    """Makes MMEngine's FlopAnalyzer and ActivationAnalyzer count the scans by default."""
    for name, handle in (
        ('mmvmamba::ss2d_scan', ss2d_scan_flop_jit),
        ('mmvmamba::selective_scan', selective_scan_flop_jit),
        ('mmvmamba::scan_mark', scan_mark_flop_jit),
    ):
        complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[name] = handle
        complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS[name] = generic_activation_jit()


register_flop_handles()
