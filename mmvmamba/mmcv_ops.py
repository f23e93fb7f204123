"""A stand-in for ``mmcv._ext``, so that detectors need no compiled mmcv.

``import mmvmamba`` makes it available where mmcv has no compiled ops; mmcv's own take precedence.
The ops that the stock models of mmdet and mmseg call are implemented with torchvision or PyTorch,
on CPU and GPU. Every other op raises :class:`MissingOpError` when it is called.

``python -m mmvmamba.mmcv_ops`` lists the ops, and ``python -m mmvmamba.mmcv_ops SCRIPT [ARG ...]``
runs a script that imports ``mmcv.ops`` before this package, such as mmdet's own tools.
"""

import argparse
import ctypes
import functools
import importlib
import itertools
import sys
import textwrap
import types
from collections.abc import Callable
from importlib.abc import Loader
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .environment import PACKAGES, installed_version, mmcv_is_compiled
from .script import add_arguments, run_or_report

# Arguments have the names and the order of mmcv's, and results go into the tensors given for them.
# Buffers that only mmcv's kernels need stay unused.

# ---- non-maximum suppression ----


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that are kept, by descending score."""
    # Ties keep mmcv's order: torchvision sorts another way.
    order = scores.sort(0, descending=True).indices
    boxes = _at_least_float32(boxes[order])
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[_torchvision().nms(boxes, ranks, _round_to_float32(iou_threshold))]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Write boxes and decayed scores to ``dets`` and return their indices in the input.

    All are on the CPU, where mmcv moves them. NumPy's overhead is less than PyTorch's, for each of
    many small steps.
    """
    rows = torch.cat([_at_least_float32(boxes), _at_least_float32(scores)[:, None]], 1)
    # (N, 5) to (5, N): each of x1, y1, x2, y2 and the score is contiguous.
    columns, indices = rows.T.contiguous().numpy(), np.arange(len(rows), dtype=np.int64)
    iou_threshold = _round_to_float32(iou_threshold)
    first, count = 0, len(rows)
    while first < count:
        best = first + columns[4, first:count].argmax()
        columns[:, [first, best]] = columns[:, [best, first]]
        indices[[first, best]] = indices[[best, first]]
        box, first = columns[:4, first], first + 1
        iou = _iou(box, columns[:4, first:count], offset)
        rest = columns[4, first:count]
        if method == 2:
            rest *= np.exp(-(iou * iou) / sigma)
        else:
            rest *= np.where(iou >= iou_threshold, 1 - iou if method == 1 else 0, 1)
        dropped = rest < min_score
        if dropped.any():
            # The last boxes fill the gaps, as the order decides between equal scores.
            number = len(rest) - int(dropped.sum())
            gaps = first + dropped[:number].nonzero()[0]
            fillers = first + number + (~dropped[number:]).nonzero()[0][::-1]
            columns[:, gaps], indices[gaps] = columns[:, fillers], indices[fillers]
            count = first + number
    dets[:count] = torch.from_numpy(columns.T[:count])
    return torch.from_numpy(indices[:count])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return a list for each box that is kept: its index, then those that it suppresses.

    On the CPU, as :func:`softnms`.
    """
    order = dets[:, 4].sort(0, descending=True).indices.numpy()
    columns = _at_least_float32(dets).T.contiguous().numpy()
    iou_threshold = _round_to_float32(iou_threshold)
    matched = []
    while len(order):
        best, order = order[0], order[1:]
        suppressed = _iou(columns[:4, best], columns[:4, order], 0) >= iou_threshold
        matched.append([int(best), *order[suppressed].tolist()])
        order = order[~suppressed]
    return matched


def _iou(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of one box with others: (4,), (4, N) to (N,). It is nan without any area."""
    left, top, right, bottom = box
    x1, y1, x2, y2 = boxes
    width = np.minimum(right, x2) - np.maximum(left, x1) + offset
    height = np.minimum(bottom, y2) - np.maximum(top, y1) + offset
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area = (right - left + offset) * (bottom - top + offset)
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    with np.errstate(divide='ignore', invalid='ignore'):
        return intersection / (area + areas - intersection)


def _round_to_float32(threshold: float) -> float:
    # mmcv compares with a float: an IoU of exactly 0.3 is not above 0.3.
    return ctypes.c_float(threshold).value


# ---- RoIAlign ----


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average of the samples in each bin to ``output``."""
    _check_pool_mode(pool_mode)
    input, rois = _at_least_float32(input), _at_least_float32(rois)
    size = aligned_height, aligned_width
    output.copy_(
        _torchvision().roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` to ``grad_input``."""
    _check_pool_mode(pool_mode)
    grad_output, rois = _at_least_float32(grad_output), _at_least_float32(rois)
    size = aligned_height, aligned_width
    settings = (*grad_input.shape, sampling_ratio, aligned)
    grad_input.copy_(
        _torchvision()._roi_align_backward(grad_output, rois, spatial_scale, *size, *settings)
    )


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        _not_available("roi_align with pool_mode='max'")


# ---- deformable convolution ----

# mmcv's names of stride, padding, dilation, groups and groups of offsets, in torchvision's order.
_SETTINGS = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_MODULATED_SETTINGS = (
    *('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w'),
    *('group', 'deformable_group'),
)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """Write the deformable convolution without a mask to ``output``."""
    tensors = _deform_conv_tensors(input, weight, offset)
    values = [settings[name] for name in _SETTINGS]
    output.copy_(_torchvision().deform_conv2d(*tensors, *values, False))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Write the gradients of input and offsets of :func:`deform_conv_forward`."""
    grads = _deform_conv_backward(gradOutput, input, weight, offset, settings)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **settings: int,
) -> None:
    """Write the gradient of the weight of :func:`deform_conv_forward`, multiplied by ``scale``."""
    weight = torch.zeros_like(gradWeight)  # on whose values its gradient does not depend
    grads = _deform_conv_backward(gradOutput, input, weight, offset, settings)
    gradWeight.copy_(grads[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Write the deformable convolution with a mask to ``output``."""
    tensors = _deform_conv_tensors(input, weight, offset, mask, bias if with_bias else None)
    values = [settings[name] for name in _MODULATED_SETTINGS]
    output.copy_(_torchvision().deform_conv2d(*tensors, *values, True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    grads = _deform_conv_backward(grad_output, input, weight, offset, settings, mask)
    outputs = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        outputs.append(grad_bias)
    for out, grad in zip(outputs, grads, strict=False):
        out.copy_(grad)


def _deform_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    settings: dict[str, int],
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight, offset, mask and bias."""
    names = _SETTINGS if mask is None else _MODULATED_SETTINGS
    return _torchvision()._deform_conv2d_backward(
        _at_least_float32(grad_output),
        *_deform_conv_tensors(input, weight, offset, mask),
        *(settings[name] for name in names),
        mask is not None,
    )


def _deform_conv_tensors(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> list[Tensor]:
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [_at_least_float32(tensor) for tensor in (input, weight, offset, mask, bias)]


# ---- focal losses ----


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each class to ``output``: (N, C), (N,), (C,) or (0,) to (N, C)."""
    x = _at_least_float32(input)
    # mmcv's kernel takes log(1 - p) of a rounded p, which is wrong from x = 16 on.
    positive = -alpha * (-x).sigmoid() ** gamma * F.logsigmoid(x)
    negative = -(1 - alpha) * x.sigmoid() ** gamma * F.logsigmoid(-x)
    loss = torch.where(_is_target(input, target), positive, negative)
    output.copy_(_weighted(loss, weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the gradient of :func:`sigmoid_focal_loss_forward` to ``grad_input``."""
    x = _at_least_float32(input)
    p, q = x.sigmoid(), (-x).sigmoid()
    positive = -alpha * q**gamma * (q - gamma * p * F.logsigmoid(x))
    negative = -(1 - alpha) * p**gamma * (gamma * q * F.logsigmoid(-x) - p)
    grad = torch.where(_is_target(input, target), positive, negative)
    grad_input.copy_(_weighted(grad, weight, target))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each sample to ``output``; ``input`` holds the softmax, (N, C).

    A negative target is ignored.
    """
    p = _probability(input, target)
    loss = -alpha * (1 - p) ** gamma * p.log()
    output.copy_(_weighted(loss.where(target >= 0, 0.0)[:, None], weight, target)[:, 0])


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the gradient of the logits to ``grad_input``, (N, C)."""
    p = _probability(input, target)
    factor = alpha * (gamma * (1 - p) ** (gamma - 1) * p * p.log() - (1 - p) ** gamma)
    factor = _weighted(factor.where(target >= 0, 0.0)[:, None], weight, target)
    buff.copy_(factor[:, 0])
    grad_input.copy_(factor * (_is_target(input, target).to(p.dtype) - input))


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    return torch.arange(input.shape[1], device=input.device) == target[:, None]


def _probability(softmax: Tensor, target: Tensor) -> Tensor:
    """Return the probability of each target, above 0: (N, C), (N,) to (N,)."""
    p = _at_least_float32(softmax).gather(1, target.clamp(min=0)[:, None])[:, 0]
    return p.clamp(min=torch.finfo(torch.float32).tiny)


def _weighted(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Multiply by the weights of the targets. Those that are no class, as background, have 1."""
    if not weight.numel():
        return values
    return values * F.pad(weight, (0, 1), value=1.0)[target][:, None]


# ---- multi-scale deformable attention ----


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the attention by mmcv's PyTorch implementation, which mmcv itself calls on a CPU."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    inputs = [_at_least_float32(t) for t in (value, sampling_locations, attention_weights)]
    # As numbers: a tensor on a GPU would be waited for at each of them.
    shapes = value_spatial_shapes.tolist()
    output = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    return output.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    tensors = (value, sampling_locations, attention_weights)
    with torch.enable_grad():
        value, locations, weights = [t.detach().requires_grad_() for t in tensors]
        output = ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
        grads = torch.autograd.grad(output, (value, locations, weights), grad_output)
    outputs = (grad_value, grad_sampling_loc, grad_attn_weight)
    for out, grad in zip(outputs, grads, strict=True):
        out.copy_(grad)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _torchvision() -> Any:
    """Return torchvision's ops, which have the backward passes too."""
    import torchvision.ops  # noqa: F401

    return torch.ops.torchvision


# ---- the module ----


def get_compiler_version() -> str:
    """Return what ``collect_env`` of mmcv reports where there are no compiled ops."""
    return 'n/a'


def get_compiling_cuda_version() -> str:
    """Return what ``collect_env`` of mmcv reports where there are no compiled ops."""
    return 'n/a'


_BACKENDS = {
    'torchvision': (
        nms,
        roi_align_forward,
        roi_align_backward,
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
    ),
    'PyTorch': (
        softnms,
        nms_match,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        softmax_focal_loss_forward,
        softmax_focal_loss_backward,
        ms_deform_attn_forward,
        ms_deform_attn_backward,
    ),
}
_INFO = (get_compiler_version, get_compiling_cuda_version)


class StandInLoader(Loader):
    """Fill ``mmcv._ext`` with the ops above. The import system calls it."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill the module. Any other name that mmcv looks up is an op that raises when called."""
        for op in itertools.chain(_INFO, *_BACKENDS.values()):
            setattr(module, op.__name__, op)

        def missing(name: str) -> Callable[..., NoReturn]:
            if name.startswith('_'):
                raise AttributeError(f'module {module.__name__!r} has no attribute {name!r}')
            op = functools.partial(_not_available, name)
            setattr(module, name, op)
            return op

        vars(module)['__getattr__'] = missing


class MissingOpError(NotImplementedError):
    """Error of a call of an op that needs a compiled mmcv."""


def _not_available(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise MissingOpError(
        f'{name} needs mmcv with compiled ops. The installed mmcv has none, and mmvmamba has no '
        f'substitute for this op. {build_hint()}'
    )


def build_hint() -> str:
    """Return how to compile the ops of the installed mmcv."""
    name, version = _installed_mmcv() or ('onedl-mmcv', '2.3.6')
    source = name.removesuffix('-lite')
    return (
        'To compile all ops, which takes minutes and a C++ compiler, run `make setup '
        f'MMCV=compiled` in a clone of mmvmamba, or `pip uninstall -y {name} && '
        f'pip install --no-cache-dir --no-build-isolation {source}=={version}`.'
    )


def _installed_mmcv() -> tuple[str, str] | None:
    found = ((name, installed_version(name)) for name in PACKAGES['mmcv'])
    return next(((name, version) for name, version in found if version), None)


# ---- the command ----


def report() -> str:
    """Return the installed mmcv and the sources of its ops as text."""
    installed = _installed_mmcv()
    if installed is None:
        return 'mmcv is not installed'
    name = ' '.join(installed)
    try:
        importlib.import_module('mmcv.ops')  # which looks up every op
    except ImportError as error:
        return f'{name}: the ops cannot be imported: {error}'
    extension = sys.modules['mmcv._ext']
    ops = sorted(op for op in vars(extension) if not op.startswith('_'))
    if mmcv_is_compiled():
        return _paragraphs(f'{name}, with compiled ops', {'compiled': ops})
    groups = {source: [op.__name__ for op in ops] for source, ops in _BACKENDS.items()}
    known = {op.__name__ for op in itertools.chain(_INFO, *_BACKENDS.values())}
    groups['not available'] = [op for op in ops if op not in known]
    return _paragraphs(f'{name}, without compiled ops', groups) + f'\n{build_hint()}'


def _paragraphs(title: str, groups: dict[str, list[str]]) -> str:
    wrap = textwrap.TextWrapper(width=98, initial_indent=' ' * 4, subsequent_indent=' ' * 4)
    lines = [title]
    for source, ops in groups.items():
        lines += [f'  {source}', *wrap.wrap(', '.join(ops))]
    return '\n'.join(lines)


def main() -> None:
    """Run the script of the command line, or write the report without one."""
    parser = argparse.ArgumentParser(
        prog='python -m mmvmamba.mmcv_ops',
        description='List the ops of mmcv, or run a script that imports them before mmvmamba.',
    )
    add_arguments(parser)
    args = parser.parse_args()
    # The registry makes mmseg:: and mmvmamba:: bases resolve in configs, as in our tools.
    run_or_report(parser, args, report, 'mmvmamba.registry')


if __name__ == '__main__':
    main()
