"""Properties of single tensors in a file: kind, dtype and values."""

from typing import Any

import torch
from torch import Tensor, nn

#: Several values share a byte of these, and nothing casts them.
_PACKED = ('torch.bit', 'torch.float4')
_SUB_BYTE = [f'torch.{sign}{bits}' for sign in ('int', 'uint') for bits in range(1, 8)]
#: A small file may ask for any amount of memory by repeating one value.
_MAX_REPEATED_BYTES = 2**30
_MAX_SHOWN = 120


def unusable(value: Any) -> str:
    """Describe a value that cannot be loaded into a parameter; return '' for any other tensor."""
    if not isinstance(value, Tensor):
        return f'a {type(value).__name__}'
    if value.is_nested:
        return 'a nested tensor'
    if value.layout == torch._mkldnn:  # type: ignore[attr-defined]
        return 'an MKL-DNN tensor'
    if value.layout != torch.strided:
        return f'a sparse tensor ({value.layout})'
    if value.is_quantized:
        return f'a quantized tensor ({value.dtype})'
    if value.is_meta:
        return 'a meta tensor, which has no data'
    if str(value.dtype).startswith(_PACKED) or str(value.dtype) in _SUB_BYTE:
        return f'a tensor of packed values ({value.dtype})'
    size = value.numel() * value.element_size()
    if size > _MAX_REPEATED_BYTES and type(value) in (Tensor, nn.Parameter):
        stored = value.untyped_storage().nbytes()
        if size > stored:
            return f'a tensor of {size} bytes that repeats {stored} bytes of data'
    return ''


def same_shape(value: Any, own: Tensor) -> bool:
    """Return True for a usable tensor of the same shape as ``own``."""
    return not unusable(value) and value.shape == own.shape


def kind_of_dtype(dtype: torch.dtype) -> str:
    """Return the kind of number, within which a cast keeps the meaning."""
    if dtype.is_floating_point:
        return 'floating point'
    if dtype.is_complex:
        return 'complex'
    return 'bool' if dtype == torch.bool else 'integer'


def count_non_finite(value: Tensor, dtype: torch.dtype) -> int:
    """Count the NaN and Inf among the values after a cast, in which large values overflow."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0
    value = value.detach().to(dtype)
    if dtype.itemsize == 1:
        value = value.float()  # nothing is computed in 8 bits
    # The sum of NaN or Inf and any other values is not finite. It is seven times faster.
    if torch.isfinite(value.sum()):
        return 0
    return value.numel() - int(torch.isfinite(value).sum())


def shown(key: str) -> str:
    """Return a name for a message: one line of limited length, whatever a file calls a tensor."""
    text = key if key.isprintable() else repr(key)
    return text if len(text) <= _MAX_SHOWN else f'{text[: _MAX_SHOWN - 3]}...'
