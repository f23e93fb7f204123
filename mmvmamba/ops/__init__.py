"""Selective scans over sequences and maps."""

from . import flops as flops
from .backend import BACKENDS
from .cross_scan import cross_merge, cross_scan
from .extension import ExtensionUnavailableWarning, extension_error, has_kernel
from .scan_orders import SCAN_PATTERNS, register_scan_order
from .selective_scan import selective_scan, selective_scan_reference
from .ss2d_scan import decompositions, ss2d_scan, ss2d_scan_reference

__all__ = [
    'BACKENDS',
    'SCAN_PATTERNS',
    'ExtensionUnavailableWarning',
    'cross_merge',
    'cross_scan',
    'decompositions',
    'has_kernel',
    'extension_error',
    'register_scan_order',
    'selective_scan',
    'selective_scan_reference',
    'ss2d_scan',
    'ss2d_scan_reference',
]
