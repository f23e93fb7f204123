"""The stand-in for mmcv's compiled ops, against formulas of its own and against mmcv."""

import importlib
import math
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import mmvmamba
from mmvmamba import mmcv_ops

pytest.importorskip('torchvision')

# Every test without `mmcv` in its name needs torch and torchvision alone.


def rand(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def boxes_and_scores(number, seed=0):
    """Overlapping boxes in a square of 100 with equal scores among them."""
    generator = torch.Generator().manual_seed(seed)
    corner = 80 * torch.rand(number, 2, generator=generator)
    size = 5 + 35 * torch.rand(number, 2, generator=generator)
    scores = torch.randint(1, 1 + number // 2 + 1, (number,), generator=generator) / number
    return torch.cat([corner, corner + size], 1), scores


# ---- non-maximum suppression ----


def overlap(a, b, offset):
    """Return the IoU of two boxes as mmcv computes it, in float32."""
    width = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]) + offset).clamp(min=0)
    height = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]) + offset).clamp(min=0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


def greedy(boxes, scores, threshold, offset):
    kept = []
    for i in scores.sort(0, descending=True).indices.tolist():
        if all(overlap(boxes[j], boxes[i], offset) <= torch.tensor(threshold) for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.05, 0.3, 0.7, 1.0])
def test_nms(threshold, offset):
    boxes, scores = boxes_and_scores(61)
    kept = mmcv_ops.nms(boxes, scores, iou_threshold=threshold, offset=offset)
    assert kept.dtype == torch.int64
    assert kept.tolist() == greedy(boxes, scores, threshold, offset)


@pytest.mark.parametrize('threshold', [0.3, 0.4, 0.6, 0.7])
def test_nms_keeps_an_overlap_equal_to_the_threshold(threshold):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10 * threshold]])
    assert mmcv_ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold, 0).tolist() == [0, 1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_dtypes(dtype):
    boxes = torch.tensor([[0, 0, 8, 8], [16, 16, 24, 24], [0, 0, 8, 7]], dtype=dtype)
    kept = mmcv_ops.nms(boxes, torch.tensor([1, 2, 3], dtype=dtype), 0.5, 0)
    assert kept.tolist() == [2, 1]


def test_nms_without_boxes():
    assert mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0).shape == (0,)


def soft_greedy(boxes, scores, threshold, sigma, min_score, method, offset):
    """Return rows [x1, y1, x2, y2, score] and their indices, by swaps as mmcv does."""
    rows = [[box, score, i] for i, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    first = 0
    while first < len(rows):
        best = max(range(first, len(rows)), key=lambda k: rows[k][1])
        rows[first], rows[best] = rows[best], rows[first]
        k = first + 1
        while k < len(rows):
            iou = overlap(rows[first][0], rows[k][0], offset)
            above = bool(iou >= torch.tensor(threshold))
            decay = [0.0, 1 - iou][method] if method < 2 and above else 1.0
            decay = torch.exp(-iou * iou / sigma) if method == 2 else decay
            rows[k] = [rows[k][0], rows[k][1] * decay, rows[k][2]]
            if rows[k][1] < min_score:
                rows[k] = rows[-1]
                rows.pop()
            else:
                k += 1
        first += 1
    return torch.stack([torch.cat([box, s[None]]) for box, s, _ in rows]), [r[2] for r in rows]


@pytest.mark.parametrize('method', [0, 1, 2], ids=['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms(method, offset):
    boxes, scores = boxes_and_scores(41)
    settings = (0.3, 0.5, 0.05, method, offset)
    dets = torch.full((41, 5), -1.0)
    kept = mmcv_ops.softnms(boxes, scores, dets, *settings)
    rows, indices = soft_greedy(boxes, scores, *settings)
    assert kept.tolist() == indices
    assert 0 < len(kept) < 41
    torch.testing.assert_close(dets[: len(kept)], rows)


def test_soft_nms_without_boxes():
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5)
    assert mmcv_ops.softnms(*empty, 0.3, 0.5, 0.001, 1, 0).shape == (0,)


@pytest.mark.filterwarnings('error')
def test_boxes_without_area_do_not_overlap():
    boxes, scores = torch.tensor([[3.0, 3, 3, 3]]).repeat(2, 1), torch.tensor([0.5, 0.75])
    dets = torch.zeros(2, 5)
    assert mmcv_ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.05, 1, 0).tolist() == [1, 0]
    assert dets[:, 4].tolist() == [0.75, 0.5]
    assert mmcv_ops.nms_match(dets, 0.3) == [[0], [1]]


def test_nms_match():
    boxes, scores = boxes_and_scores(37)
    dets = torch.cat([boxes, scores[:, None]], 1)
    groups = mmcv_ops.nms_match(dets, iou_threshold=0.3)
    assert [group[0] for group in groups] == greedy(boxes, scores, 0.3, 0)
    assert sorted(i for group in groups for i in group) == list(range(37))
    for first, *others in groups:
        assert all(overlap(boxes[first], boxes[i], 0) >= 0.3 for i in others)
        assert scores[others].tolist() == sorted(scores[others].tolist(), reverse=True)


# ---- RoIAlign ----


ROIS = torch.tensor(
    [
        [0, 1.0, 2.0, 9.0, 7.5],
        [1, -3.0, -2.0, 4.0, 30.0],
        [1, 0.0, 0.0, 26.0, 18.0],
        [0, 5.2, 3.3, 5.2, 3.3],
        [1, 50.0, 60.0, 70.0, 80.0],
    ],
    dtype=torch.float64,
)


def tent(positions, size):
    """Return weights of linear interpolation, (number of positions, size)."""
    inside = (positions >= -1) & (positions <= size)
    positions = positions.clamp(0, size - 1)[:, None]
    return (1 - (positions - torch.arange(size)).abs()).clamp(min=0) * inside[:, None]


def roi_align(input, rois, size, scale, ratio, aligned):
    """RoIAlign as two matrix products: interpolation is separable."""
    outputs = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (scale * corner - 0.5 * aligned for corner in corners)
        weights = []
        for low, high, bins, length in (
            (y1, y2, size[0], input.shape[2]),
            (x1, x2, size[1], input.shape[3]),
        ):
            extent = high - low if aligned else max(high - low, 1.0)
            samples = ratio or -int(-extent // bins)
            steps = (torch.arange(bins * samples, dtype=torch.float64) + 0.5) / max(samples, 1)
            matrix = tent(low + extent / bins * steps, length)
            weights.append(matrix.view(bins, samples, length).sum(1) / max(samples, 1))
        outputs.append(weights[0] @ input[int(index)] @ weights[1].T)
    return torch.stack(outputs)


def run_roi_align(input, rois, size, scale, ratio, aligned, grad=None):
    output, unused = input.new_zeros(len(rois), input.shape[1], *size), input.new_zeros(0)
    settings = dict(
        aligned_height=size[0],
        aligned_width=size[1],
        spatial_scale=scale,
        sampling_ratio=ratio,
        pool_mode=1,
        aligned=aligned,
    )
    mmcv_ops.roi_align_forward(input, rois, output, unused, unused, **settings)
    if grad is None:
        return output
    grad_input = torch.zeros_like(input)
    mmcv_ops.roi_align_backward(grad, rois, unused, unused, grad_input, **settings)
    return output, grad_input


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align(ratio, aligned):
    input = rand(2, 3, 9, 13).requires_grad_()
    settings = ((3, 2), 0.5, ratio, aligned)
    expected = roi_align(input, ROIS, *settings)
    grad = rand(*expected.shape, seed=1)
    output, grad_input = run_roi_align(input.detach(), ROIS, *settings, grad=grad)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(grad_input, torch.autograd.grad(expected, input, grad)[0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision(dtype):
    input, rois = rand(2, 3, 9, 13, dtype=dtype), ROIS.to(dtype)
    settings = ((3, 2), 0.5, 0, True)
    grad = rand(5, 3, 3, 2, seed=1, dtype=dtype)
    results = run_roi_align(input, rois, *settings, grad=grad)
    expected = run_roi_align(input.float(), rois.float(), *settings, grad=grad.float())
    for result, wide in zip(results, expected, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result, wide.to(dtype))


def test_roi_align_without_rois():
    output = run_roi_align(rand(1, 2, 5, 4), ROIS[:0], (3, 2), 0.5, 0, True, rand(0, 2, 3, 2))
    assert output[0].shape == (0, 2, 3, 2)
    assert not output[1].any()


def test_roi_align_by_maximum():
    tensors = [rand(1, 2, 5, 4), ROIS[:1], *(rand(1, 2, 3, 2) for _ in range(3))]
    for op in (mmcv_ops.roi_align_forward, mmcv_ops.roi_align_backward):
        with pytest.raises(NotImplementedError, match="roi_align with pool_mode='max' needs mmcv"):
            op(*tensors, 3, 2, 0.5, 0, 0, True)


# ---- deformable convolution ----


def deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, offsets):
    """Deformable convolution by bilinear sampling, which differentiates everything."""
    batch, channels, height, width = input.shape
    rows, columns = offset.shape[2:]
    kernel = weight.shape[2:]
    offset = offset.view(batch, offsets, kernel.numel(), 2, rows, columns)
    taps = []
    for k in range(kernel.numel()):
        y = k // kernel[1] * dilation[0] - padding[0] + stride[0] * torch.arange(rows)[:, None]
        x = k % kernel[1] * dilation[1] - padding[1] + stride[1] * torch.arange(columns)
        y, x = y + offset[:, :, k, 0], x + offset[:, :, k, 1]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1).flatten(0, 1)
        maps = input.view(batch * offsets, channels // offsets, height, width)
        sampled = F.grid_sample(maps, grid, align_corners=False)
        if mask is not None:
            sampled = sampled * mask[:, k :: kernel.numel()].reshape(-1, 1, rows, columns)
        taps.append(sampled.view(batch, groups, channels // groups, rows, columns))
    weight = weight.view(groups, -1, channels // groups, kernel.numel())
    output = torch.einsum('kbgcyx,gock->bgoyx', torch.stack(taps), weight).flatten(1, 2)
    return output if bias is None else output + bias[:, None, None]


GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, offsets=3)


def deform_inputs(modulated):
    """Return input, weight, offset, mask and bias for a kernel of 3 x 2 on maps of 9 x 8."""
    input, weight = rand(2, 6, 9, 8), rand(4, 3, 3, 2, seed=1)
    offset = 2 * rand(2, 3 * 2 * 6, 5, 10, seed=2)
    if not modulated:
        return input, weight, offset, None, None
    return input, weight, offset, rand(2, 3 * 6, 5, 10, seed=3).sigmoid(), rand(4, seed=4)


def run_deform_conv(input, weight, offset, mask, bias, grad):
    """Return the output and the gradients of what is not None."""
    buffer, output = input.new_empty(0), torch.empty_like(grad)
    given = [t for t in (input, weight, offset, mask, bias) if t is not None]
    grads = [torch.zeros_like(t) for t in given]
    if mask is None:
        settings = dict(
            **dict(kW=2, kH=3, dW=1, dH=2, padW=2, padH=1, dilationW=2, dilationH=1),
            **dict(group=2, deformable_group=3, im2col_step=2),
        )
        mmcv_ops.deform_conv_forward(input, weight, offset, output, buffer, buffer, **settings)
        mmcv_ops.deform_conv_backward_input(
            input, offset, grad, grads[0], grads[2], weight, buffer, **settings
        )
        mmcv_ops.deform_conv_backward_parameters(
            input, offset, grad, grads[1], buffer, buffer, **settings, scale=1
        )
        return output, grads
    settings = dict(
        **dict(kernel_h=3, kernel_w=2, stride_h=2, stride_w=1, pad_h=1, pad_w=2, dilation_h=1),
        **dict(dilation_w=2, group=2, deformable_group=3, with_bias=bias is not None),
    )
    bias = buffer if bias is None else bias
    tensors = (input, weight, bias, buffer, offset, mask)
    mmcv_ops.modulated_deform_conv_forward(*tensors, output, buffer, **settings)
    d_input, d_weight, d_offset, d_mask, d_bias = [*grads, buffer][:5]
    outputs = (d_input, d_weight, d_bias, d_offset, d_mask, grad)
    mmcv_ops.modulated_deform_conv_backward(*tensors, buffer, *outputs, **settings)
    return output, grads


@pytest.mark.parametrize('given', [3, 4, 5], ids=['plain', 'modulated', 'with bias'])
def test_deform_conv(given):
    tensors = [*deform_inputs(modulated=given > 3)[:given], None, None][:5]
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    expected = deform_conv(*leaves, **GEOMETRY)
    grad = rand(*expected.shape, seed=5)
    output, grads = run_deform_conv(*tensors, grad)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(grads, list(torch.autograd.grad(expected, leaves[:given], grad)))


# ---- focal losses ----


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss(weighted):
    """With a target that is the background and one that is ignored, as mmdet passes them."""
    logits, target = 5 * rand(7, 3).requires_grad_(), torch.tensor([0, 1, 2, 3, -1, 0, 2])
    weight = torch.tensor([0.5, 2.0, 3.0] if weighted else [], dtype=torch.float64)
    labels = F.one_hot(torch.where(target < 0, 3, target), 4)[:, :3].double()
    p = logits.sigmoid()
    of_target = torch.where(labels > 0, p, 1 - p)
    alpha = torch.where(labels > 0, 0.25, 0.75)
    expected = -alpha * (1 - of_target) ** 2.0 * of_target.log()
    if weighted:
        expected = expected * torch.tensor([0.5, 2, 3, 1, 1, 0.5, 3])[:, None]
    output, grad = torch.zeros(2, 7, 3, dtype=torch.float64)
    x = logits.detach()
    mmcv_ops.sigmoid_focal_loss_forward(x, target, weight, output, gamma=2.0, alpha=0.25)
    mmcv_ops.sigmoid_focal_loss_backward(x, target, weight, grad, gamma=2.0, alpha=0.25)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])


def test_sigmoid_focal_loss_of_large_logits():
    x = torch.tensor([[-200.0, -30.0, 30.0, 200.0]])
    output, grad = torch.zeros(2, 1, 4)
    for target, loss in ((torch.tensor([0]), [50.0, 0.0, 22.5, 150.0]), (torch.tensor([3]), None)):
        mmcv_ops.sigmoid_focal_loss_forward(x, target, x.new_empty(0), output, 2.0, 0.25)
        mmcv_ops.sigmoid_focal_loss_backward(x, target, x.new_empty(0), grad, 2.0, 0.25)
        assert output.isfinite().all()
        assert grad.isfinite().all()
        if loss:
            torch.testing.assert_close(output, torch.tensor([loss]))


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_softmax_focal_loss(gamma, weighted):
    logits, target = 2 * rand(6, 3).requires_grad_(), torch.tensor([0, 1, 2, -1, 0, 2])
    weight = torch.tensor([0.5, 2.0, 3.0] if weighted else [], dtype=torch.float64)
    softmax = logits.softmax(1)
    p = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    expected = torch.where(target >= 0, -0.25 * (1 - p) ** gamma * p.log(), 0.0)
    if weighted:
        expected = expected * weight[target.clamp(min=0)]
    output, buffer = torch.zeros(2, 6, dtype=torch.float64)
    grad, x = torch.zeros_like(softmax), softmax.detach()
    mmcv_ops.softmax_focal_loss_forward(x, target, weight, output, gamma=gamma, alpha=0.25)
    mmcv_ops.softmax_focal_loss_backward(x, target, weight, buffer, grad, gamma=gamma, alpha=0.25)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])


def test_softmax_focal_loss_of_an_impossible_target():
    softmax, target, output = torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.zeros(1)
    grad = torch.full_like(softmax, torch.nan)
    mmcv_ops.softmax_focal_loss_forward(softmax, target, torch.zeros(0), output, 2.0, 0.25)
    assert output.item() == pytest.approx(-0.25 * math.log(torch.finfo(torch.float32).tiny))
    mmcv_ops.softmax_focal_loss_backward(softmax, target, torch.zeros(0), output, grad, 2.0, 0.25)
    torch.testing.assert_close(grad, torch.tensor([[-0.25, 0.25]]))


# ---- multi-scale deformable attention ----


def attention(value, shapes, locations, weights):
    """Multi-scale deformable attention of one query, head and point at a time."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], *locations.shape[3:5]
    maps = [
        level.permute(0, 2, 3, 1).reshape(batch, heads, channels, *shape)
        for level, shape in zip(value.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ]
    output = value.new_zeros(batch, queries, heads, channels)
    for b, q, h, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, levels, points))
    ).tolist():
        rows, columns = shapes[level]
        x, y = locations[b, q, h, level, p] * locations.new_tensor([columns, rows]) - 0.5
        for row in (int(y.floor()), int(y.floor()) + 1):
            for column in (int(x.floor()), int(x.floor()) + 1):
                if 0 <= row < rows and 0 <= column < columns:
                    share = (1 - (y - row).abs()) * (1 - (x - column).abs())
                    share = share * weights[b, q, h, level, p]
                    output[b, q, h] = output[b, q, h] + share * maps[level][b, h, :, row, column]
    return output.flatten(2)


def attention_inputs(dtype=torch.float64):
    shapes = [(3, 5), (2, 1)]
    value = rand(2, 17, 2, 3, dtype=dtype)
    locations = (0.5 + 0.4 * rand(2, 4, 2, 2, 3, 2, seed=1)).to(dtype)
    weights = rand(2, 4, 2, 2, 3, seed=2).flatten(3).softmax(-1).view(2, 4, 2, 2, 3).to(dtype)
    return shapes, value, locations, weights


def test_ms_deform_attn_of_mmcv():
    pytest.importorskip('mmcv.ops')
    shapes, *inputs = attention_inputs()
    leaves = [t.clone().requires_grad_() for t in inputs]
    expected = attention(leaves[0], shapes, *leaves[1:])
    levels = torch.tensor(shapes), torch.tensor([0, 15])
    output = mmcv_ops.ms_deform_attn_forward(inputs[0], *levels, *inputs[1:], im2col_step=64)
    torch.testing.assert_close(output, expected.detach())
    grad, grads = rand(*expected.shape, seed=5), [torch.zeros_like(t) for t in inputs]
    with torch.no_grad():  # as in the backward of mmcv's function
        mmcv_ops.ms_deform_attn_backward(
            inputs[0], *levels, *inputs[1:], grad, *grads, im2col_step=64
        )
    torch.testing.assert_close(grads, list(torch.autograd.grad(expected, leaves, grad)))


# ---- GPUs ----


@pytest.mark.skipif(not torch.version.cuda, reason='PyTorch without CUDA')
def test_ops_take_tensors_of_a_gpu():
    """With tensors that have a device and no values: those of two devices do not mix."""
    with FakeTensorMode(), torch.device('cuda'):
        buffer, input, rois, size = torch.rand(0), torch.rand(2, 3, 9, 13), torch.rand(4, 5), (3, 2)
        output = run_roi_align(input, rois, size, 0.5, 0, True, grad=torch.rand(4, 3, 3, 2))
        logits, target = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
        for weight in (buffer, torch.rand(3)):
            settings = (target, weight)
            mmcv_ops.sigmoid_focal_loss_forward(logits, *settings, logits, 2.0, 0.25)
            mmcv_ops.sigmoid_focal_loss_backward(logits, *settings, logits, 2.0, 0.25)
            mmcv_ops.softmax_focal_loss_forward(logits, *settings, torch.rand(5), 2.0, 0.25)
            mmcv_ops.softmax_focal_loss_backward(
                logits, *settings, torch.rand(5), logits, 2.0, 0.25
            )
        with pytest.raises(DynamicOutputShapeException, match='torchvision.nms'):
            mmcv_ops.nms(torch.rand(5, 4), torch.rand(5), 0.5, 1)
    assert all(tensor.device.type == 'cuda' for tensor in output)


@pytest.mark.skipif(not torch.version.cuda, reason='PyTorch without CUDA')
@pytest.mark.parametrize('modulated', [True, False])
def test_deform_conv_takes_tensors_of_a_gpu(modulated):
    with FakeTensorMode() as mode:
        tensors = [
            None if t is None else mode.from_tensor(t).to('cuda') for t in deform_inputs(modulated)
        ]
        run_deform_conv(*tensors, torch.rand(2, 4, 5, 10, device='cuda', dtype=torch.float64))


# ---- the module ----


@pytest.fixture(scope='module')
def stand_in():
    """Module in the place of ``mmcv._ext``."""
    loader = mmcv_ops.StandInLoader()
    module = module_from_spec(ModuleSpec('stand_in', loader))
    loader.exec_module(module)
    return module


def test_ops_that_are_not_there_raise_when_called(stand_in):
    op = stand_in.carafe_forward
    assert stand_in.carafe_forward is op
    with pytest.raises(
        NotImplementedError, match='carafe_forward needs mmcv with compiled'
    ) as info:
        op(torch.zeros(1), scale_factor=2)
    assert 'make setup MMCV=compiled' in str(info.value)
    assert 'pip install --no-cache-dir --no-build-isolation' in str(info.value)
    assert not hasattr(stand_in, '__wrapped__')
    with pytest.raises(AttributeError, match="'stand_in' has no attribute '_private'"):
        getattr(stand_in, '_private')  # noqa: B009


@pytest.mark.parametrize(
    ('installed', 'command'),
    [
        ({'onedl-mmcv': '2.3.6'}, 'uninstall -y onedl-mmcv && .* onedl-mmcv==2.3.6`'),
        ({'mmcv-lite': '2.1.0'}, 'uninstall -y mmcv-lite && .* mmcv==2.1.0`'),
        ({}, ' onedl-mmcv=='),
    ],
)
def test_the_hint_names_what_is_installed(monkeypatch, installed, command):
    monkeypatch.setattr(mmcv_ops, 'installed_version', installed.get)
    assert re.search(command, mmcv_ops.build_hint())


def test_the_finder_comes_last_and_once():
    importlib.reload(mmvmamba)
    names = [getattr(finder, '__name__', '') for finder in sys.meta_path]
    assert names.count('_MMCVOpsFinder') == 1
    assert names.index('_MMCVOpsFinder') > names.index('PathFinder')


def run_python(*args, path='', check=True, cwd=None):
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(path), env.get('PYTHONPATH', '')]))
    command = [sys.executable, *map(str, args)]
    result = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def test_the_import_of_the_package_loads_nothing():
    modules = ('mmcv', 'mmengine', 'torchvision', 'numpy.linalg', 'mmvmamba.mmcv_ops')
    code = (
        f'import torch, sys; before = set(sys.modules); import mmvmamba; '
        f'print([m for m in {modules} if m in sys.modules and m not in before])'
    )
    assert run_python('-c', code).stdout.strip() == '[]'


# ---- mmcv without its ops ----


def test_mmcv_without_ops_imports_them(pure_mmcv):
    code = """
import sys, mmvmamba, torch
from mmcv.ops import CARAFE, DeformConv2d, batched_nms, get_compiler_version
from mmcv.utils import collect_env
from mmengine.utils.dl_utils import mmcv_full_available
assert mmcv_full_available() and get_compiler_version() == collect_env()['MMCV Compiler'] == 'n/a'
try:
    CARAFE(5, 1, 2)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 25, 8, 8))
except NotImplementedError as error:
    print(error)
"""
    assert 'carafe_forward needs' in run_python('-c', code, path=pure_mmcv).stdout
    result = run_python('-c', 'import mmcv.ops', path=pure_mmcv, check=False)
    assert "No module named 'mmcv._ext'" in result.stderr


def test_report_without_ops_of_mmcv(pure_mmcv):
    report = run_python('-m', 'mmvmamba.mmcv_ops', path=pure_mmcv).stdout
    first, *_, hint = report.splitlines()
    assert re.fullmatch(r'[\w-]*mmcv[\w-]* 2\.[\d.]+, without compiled ops', first)
    assert re.search(r'^  torchvision\n    nms, ', report, flags=re.MULTILINE)
    assert re.search(
        r'^  not available\n(    .*\n)+    .*\bupfirdn2d\n', report, flags=re.MULTILINE
    )
    assert 'make setup MMCV=compiled' in hint


def test_report_of_compiled_mmcv(compiled_mmcv):
    lines = mmcv_ops.report().splitlines()
    assert lines[0].endswith(', with compiled ops')
    assert lines[1] == '  compiled'
    assert not any('not available' in line for line in lines)


@pytest.fixture
def fake_mmcv(tmp_path):
    """Folder with a small package that imports its ops as mmcv does."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').touch()
    (tmp_path / 'mmcv' / 'ops.py').write_text('from mmcv._ext import get_compiler_version')
    return tmp_path


def test_report_of_ops_that_do_not_load(fake_mmcv):
    pytest.importorskip('mmcv')  # whose version it names
    (fake_mmcv / 'mmcv' / '_ext.py').write_text("raise ImportError('undefined symbol: x')")
    result = run_python('-m', 'mmvmamba.mmcv_ops', path=fake_mmcv)
    assert result.stdout.strip().endswith('the ops cannot be imported: undefined symbol: x')


SCRIPT = """
import sys
import mmcv.ops
from torch.utils.data import DataLoader, Dataset
import beside

class Names(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return f'{mmcv.ops.get_compiler_version()} {beside.value} {__name__}'

if __name__ == '__main__':
    print(sys.argv, __file__)
    loader = DataLoader(Names(), batch_size=2, num_workers=1, multiprocessing_context='spawn')
    print(*next(iter(loader)), sep=', ')
"""


def test_script_with_spawned_processes(fake_mmcv):
    pytest.importorskip('mmengine')
    (fake_mmcv / 'script.py').write_text(SCRIPT)
    (fake_mmcv / 'beside.py').write_text('value = 3')
    result = run_python(
        '-m', 'mmvmamba.mmcv_ops', 'script.py', '--x', 'y', path=fake_mmcv, cwd=fake_mmcv
    )
    assert result.stdout.splitlines() == [
        "['script.py', '--x', 'y'] script.py",
        'n/a 3 __mp_main__, n/a 3 __mp_main__',
    ]


def test_script_that_does_not_exist():
    result = run_python('-m', 'mmvmamba.mmcv_ops', 'nothing.py', check=False)
    assert result.returncode == 2
    assert result.stderr.endswith("error: script 'nothing.py' does not exist\n")


# ---- against mmcv's compiled ops ----


@pytest.fixture
def both(compiled_mmcv, stand_in, monkeypatch):
    """Call a function of ``mmcv.ops`` with the compiled ops and with the stand-in."""

    def call(module, function, *args, **kwargs):
        # The package has functions of the same names as its modules.
        module = importlib.import_module(f'mmcv.ops.{module}')
        results = []
        for extension in (module.ext_module, stand_in):
            monkeypatch.setattr(module, 'ext_module', extension)
            leaves = [
                t.detach().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t
                for t in args
            ]
            output = function(module)(*leaves, **kwargs)
            results.append((output, leaves))
        monkeypatch.undo()
        return results

    return call


def assert_same_gradients(results, differentiable):
    """Compare outputs within 1e-6 and gradients within 1e-5 of their largest value."""
    (compiled, compiled_leaves), (output, leaves) = results
    assert_within(output, compiled, 1e-6)
    grad = rand(*output.shape, seed=9, dtype=output.dtype)
    for result, tensors in ((compiled, compiled_leaves), (output, leaves)):
        result.backward(grad)
        assert all(tensors[i].grad is not None for i in differentiable)
    for i in differentiable:
        assert_within(leaves[i].grad, compiled_leaves[i].grad, 1e-5)


def assert_within(value, expected, tolerance):
    assert value.dtype == expected.dtype
    scale = max([1.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.slow
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('number', [0, 1, 2, 63, 1000])
def test_nms_of_mmcv(both, number, offset):
    for seed in range(3):
        boxes, scores = boxes_and_scores(number, seed)
        for threshold in (0.1, 0.3, 0.5, 0.7):
            for more in ({}, {'score_threshold': 0.2}, {'max_num': 5}):
                settings = dict(iou_threshold=threshold, offset=offset, **more)
                (a, _), (b, _) = both('nms', lambda m: m.nms, boxes, scores, **settings)
                assert torch.equal(a[1], b[1])
                assert torch.equal(a[0], b[0])


@pytest.mark.slow
@pytest.mark.parametrize('threshold', [0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_nms_of_mmcv_on_a_grid(both, threshold):
    """Boxes on whole pixels have overlaps that are equal to the thresholds."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 10, (400, 2), generator=generator)
    sizes = torch.randint(0, 11, (400, 2), generator=generator)
    boxes = torch.cat([corners, corners + sizes], 1).float()
    scores = torch.randint(1, 9, (400,), generator=generator) / 8
    for offset in (0, 1):
        settings = dict(iou_threshold=threshold, offset=offset)
        (a, _), (b, _) = both('nms', lambda m: m.nms, boxes, scores, **settings)
        assert torch.equal(a[1], b[1])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
@pytest.mark.parametrize('settings', [{}, {'class_agnostic': True}, {'split_thr': 100}])
def test_batched_nms_of_mmcv(both, kind, settings):
    boxes, scores = boxes_and_scores(300)
    classes = torch.arange(300) % 7
    cfg = dict(type=kind, iou_threshold=0.5, **settings)
    (a, _), (b, _) = both('nms', lambda m: m.batched_nms, boxes, scores, classes, cfg)
    assert torch.equal(a[1], b[1])
    assert_within(b[0], a[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('number', [0, 1, 2, 63, 500])
def test_soft_nms_of_mmcv(both, number, method):
    for seed in range(3):
        boxes, scores = boxes_and_scores(number, seed)
        for settings in ({}, dict(iou_threshold=0.5, sigma=0.3, min_score=0.1, offset=1)):
            settings = dict(settings, method=method)
            (a, _), (b, _) = both('nms', lambda m: m.soft_nms, boxes, scores, **settings)
            assert torch.equal(a[1], b[1])
            assert_within(b[0], a[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1, 2, 63, 500])
def test_nms_match_of_mmcv(both, number):
    boxes, scores = boxes_and_scores(number)
    dets = torch.cat([boxes, scores[:, None]], 1)
    for threshold in (0.1, 0.3, 0.7):
        (a, _), (b, _) = both('nms', lambda m: m.nms_match, dets, threshold)
        assert [group.tolist() for group in a] == [group.tolist() for group in b]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_of_mmcv(both, aligned, ratio, dtype):
    input = rand(2, 5, 9, 13, dtype=dtype).requires_grad_()
    # The compiled ones average an empty grid to nan in the backward, those here to nothing.
    rois = ROIS[[0, 1, 2, 4]].to(dtype)
    for number, size, scale in ((4, (7, 7), 1.0), (4, (3, 2), 0.25), (0, 2, 0.5)):
        results = both(
            *('roi_align', lambda m: m.roi_align, input, rois[:number], size, scale, ratio),
            *('avg', aligned),
        )
        assert_same_gradients(results, [0])


CONVOLUTIONS = [
    dict(stride=1, padding=1, dilation=1, groups=1, offsets=1),
    dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2, offsets=3),
]


def convolution_inputs(offsets, groups, stride, padding, dilation, dtype):
    """Return input, offset, mask, weight and bias of a kernel of 3 x 2."""
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    size = [
        (length + 2 * pad - rate * (kernel - 1) - 1) // step + 1
        for length, kernel, step, pad, rate in zip((9, 13), (3, 2), *pairs, strict=True)
    ]
    shapes = [
        (2, 6, 9, 13),
        (2, 2 * 6 * offsets, *size),
        (2, 6 * offsets, *size),
        (4, 6 // groups, 3, 2),
        (4,),
    ]
    return [
        rand(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes)
    ]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('geometry', CONVOLUTIONS)
def test_deform_conv_of_mmcv(both, geometry, dtype):
    input, offset, _, weight, _ = convolution_inputs(**geometry, dtype=dtype)
    results = both(
        'deform_conv', lambda m: m.deform_conv2d, input, offset, weight, *geometry.values()
    )
    assert_same_gradients(results, [0, 1, 2])


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('geometry', CONVOLUTIONS)
def test_modulated_deform_conv_of_mmcv(both, geometry, with_bias, dtype):
    tensors = convolution_inputs(**geometry, dtype=dtype)
    if not with_bias:
        tensors[-1] = None
    results = both(
        *('modulated_deform_conv', lambda m: m.modulated_deform_conv2d, *tensors),
        *geometry.values(),
    )
    assert_same_gradients(results, range(4 + with_bias))
