"""Copies of the Triton kernels that Triton's interpreter runs on CPU tensors.

``triton.jit`` decides between the compiler and the interpreter when a module is imported. So the
kernels are imported a second time, beside those that other tests of this process compile.
"""

import contextlib
import functools
import importlib
import os
import sys
from types import SimpleNamespace

import numpy as np
import torch

from mmvmamba.ops import triton as package

NAMES = ('tiles', 'forward', 'backward', 'launch')
#: Kernels around the building blocks, which return what those return.
PROBES = f'{__package__}.probes'


@functools.cache
def copies():
    """Import interpreted copies of the modules of the kernels, and of the probes, by name."""
    paths = {name: f'{package.__name__}.{name}' for name in NAMES} | {'probes': PROBES}
    originals = {path: sys.modules.pop(path) for path in paths.values() if path in sys.modules}
    attributes = {name: vars(package).pop(name) for name in NAMES if name in vars(package)}
    before = os.environ.get('TRITON_INTERPRET')
    os.environ['TRITON_INTERPRET'] = '1'
    try:
        modules = {name: importlib.import_module(path) for name, path in paths.items()}
    finally:
        if before is None:
            del os.environ['TRITON_INTERPRET']
        for name in NAMES:
            vars(package).pop(name, None)
        for path in paths.values():
            sys.modules.pop(path, None)
        vars(package).update(attributes)
        sys.modules.update(originals)
    return SimpleNamespace(**modules)


@functools.cache
def _library():
    """Interpreted copies of Triton's own functions that are written in Triton, as tl.sum."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    # It copies functions of triton.language when it is imported, and PyTorch may import it later.
    importlib.import_module('triton.experimental.gluon')
    return [
        (module, name, InterpretedFunction(value.fn))
        for module in (tl, tl.standard)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
    ]


def _create_dot(create_dot):
    """Widen bfloat16 first: the interpreter would multiply the integers that hold its bits."""
    import triton.language as tl

    def wide(builder, value):
        if value.dtype.scalar != tl.bfloat16:
            return value
        return builder.create_fp_ext(value, tl.block_type(tl.float32, list(value.data.shape)))

    def patched(builder, a, b, *args):
        return create_dot(builder, wide(builder, a), wide(builder, b), *args)

    return patched


def _get_bf16(self, value):
    """Return a number in bfloat16, which the interpreter's builder lacks."""
    import triton.language as tl

    return self.create_fp_trunc(self.get_fp32(value), tl.bfloat16)


def _cast_impl(cast_impl):
    """Round float32 to the nearest bfloat16: the interpreter would cut off its last bits."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def patched(builder, value, dtype):
        if (value.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast_impl(builder, value, dtype)
        rounded = torch.tensor(value.data).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(rounded, tl.bfloat16)

    return patched


def _generic_scan(self, inputs):
    """Combine whole slices in a tree, as GPUs do; the interpreter goes element by element."""
    out = [np.moveaxis(value.handle.data, self.axis, 0).copy() for value in inputs]
    types = [value.dtype for value in inputs]

    def tensors(slices):
        return [self.to_tensor(values, dtype) for values, dtype in zip(slices, types, strict=True)]

    distance = 1
    while distance < len(out[0]):
        # The first ones come round from the end, and are not used: a shape is a power of two.
        earlier = [np.roll(values, distance, 0) for values in out]
        for values, value in zip(
            out, self.combine_fn.fn(*tensors(earlier), *tensors(out)), strict=True
        ):
            values[distance:] = value.handle.data[distance:]
        distance *= 2
    return tensors(np.moveaxis(values, 0, self.axis) for values in out)


@contextlib.contextmanager
def interpreted():
    """Let the interpreter run in the context, and leave Triton as it was.

    The interpreter replaces functions of ``triton.language``, and not all of them come back.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    owners = (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype)
    owners += (tl.core.tensor_descriptor_base,)
    owners += (interpreter, interpreter.InterpreterBuilder, interpreter.ScanOps)
    modules, library = copies(), _library()
    states = [dict(vars(owner)) for owner in owners]
    builder, scans = interpreter.InterpreterBuilder, interpreter.ScanOps
    builder.create_dot = _create_dot(builder.create_dot)
    builder.cast_impl = _cast_impl(builder.cast_impl)
    builder.get_bf16 = _get_bf16
    scans.generic_scan = _generic_scan
    for module, name, function in library:
        setattr(module, name, function)
    # Once, and not again at every call of a function of a kernel.
    for function in (tl.sum, modules.tiles.softplus):
        interpreter._patch_lang(function.fn)
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()
    try:
        yield modules
    finally:
        for owner, state in zip(owners, states, strict=True):
            for name in vars(owner).keys() - state.keys():
                delattr(owner, name)
            for name, value in state.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
