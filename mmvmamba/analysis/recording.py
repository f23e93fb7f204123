"""Recording of the scans or the attention of a network's blocks during a forward pass."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvmamba.nn import SS2D, VMambaNet
from mmvmamba.ops.cross_scan import to_sequence
from mmvmamba.ops.scan_orders import COLUMN, COLUMN_REVERSED, Order, resolve_pattern

from .activation_map import AttentionMaps, Maps, ScanMaps, ScanPath


def record(net: nn.Module, stage: int, run: Callable[[], Any]) -> list[Maps]:
    """Run a network on one image and record the maps of its blocks, without changing its result.

    Args:
        net (nn.Module): A VMamba, a Vision Transformer of mmpretrain, or a model with such a
            backbone.
        stage (int): The stage of a VMamba. A Vision Transformer has only one.
        run (Callable): Runs the network.

    Returns:
        list[ScanMaps | AttentionMaps]: One for each block that has an SS2D or an attention.

    Raises:
        ValueError: If the network has neither, the stage does not exist, or its blocks do not run
            once for one image.
    """
    backbone = getattr(net, 'backbone', net)
    modules = _modules(backbone, stage)
    records: list[Maps] = []
    with torch.no_grad(), ExitStack() as stack:
        for module in modules:
            if isinstance(module, SS2D):
                _record_scans(module, records, stack)
            else:
                _record_attention(module, backbone.patch_embed, records, stack)
        run()
    if len(records) != len(modules):
        raise ValueError(f'{len(modules)} blocks must run once each, but got {len(records)} runs')
    return records


def _modules(backbone: nn.Module, stage: int) -> list[nn.Module]:
    if isinstance(backbone, VMambaNet):
        stages = len(backbone.layers)
        if not -stages <= stage < stages:
            raise ValueError(f'stage must be in [{-stages}, {stages - 1}], but got {stage}')
        modules = [b.op for b in backbone.layers[stage].blocks if b.op is not None]
    else:
        attentions = (getattr(b, 'attn', None) for b in getattr(backbone, 'layers', ()))
        modules = [attn for attn in attentions if hasattr(attn, 'qkv')]
    if not modules:
        raise ValueError(
            f'{type(backbone).__name__} has neither SS2D blocks nor the attention of an '
            'mmpretrain Vision Transformer'
        )
    return modules


def _record_scans(module: SS2D, records: list[Maps], stack: ExitStack) -> None:
    original = module.core

    def start(_, args: tuple[Tensor]) -> None:
        _check_single(args[0])
        records.append(ScanMaps(tuple(args[0].shape[1:3])))

    def core(x: Tensor, pattern: str | tuple[Order, ...], first: int = 0) -> Tensor:
        height, width = records[-1].shape
        index = torch.arange(height * width, device=x.device).view(1, height, width, 1)
        if module.scan == 'cascade':  # each line is a sample of its own
            index = (index.transpose(1, 2) if first else index).reshape(*x.shape[:3], 1)
        records[-1].passes.append(_paths(index, *module.scan_arguments(x, pattern, first)))
        return original(x, pattern, first)

    stack.enter_context(module.register_forward_pre_hook(start))
    module.core = core
    stack.callback(delattr, module, 'core')


def _paths(index: Tensor, *scan_arguments: Any) -> list[ScanPath]:
    """Return the directions of one call of :func:`mmvmamba.ops.ss2d_scan`."""
    *tensors, pattern = scan_arguments
    x, proj, dt_weight, dt_bias, A, D = (v.detach().double() for v in tensors)
    rank, states = dt_weight.shape[2], A.shape[2]
    paths = []
    for k, order in enumerate(resolve_pattern(pattern)):
        low, B, C = to_sequence(proj[:, :, :, k], order).split([rank, states, states], -1)
        dt = F.softplus(low @ dt_weight[k].T + dt_bias[k])
        line = x.shape[1] if order in (COLUMN, COLUMN_REVERSED) else x.shape[2]
        positions = to_sequence(index, order).squeeze(-1)
        paths.append(ScanPath(positions, to_sequence(x, order), dt, A[k], B, C, D[k], line))
    return paths


def _record_attention(
    module: nn.Module, patch_embed: nn.Module, records: list[Maps], stack: ExitStack
) -> None:
    shape = (0, 0)

    def keep_shape(_, args: tuple[Tensor], out: tuple[Tensor, tuple[int, int]]) -> None:
        nonlocal shape
        shape = tuple(out[1])

    def keep_qk(_, args: tuple[Tensor], out: Tensor) -> None:
        _check_single(out)
        q, k, _ = out.double().view(out.shape[1], 3, module.num_heads, -1).permute(1, 2, 0, 3)
        records.append(AttentionMaps(shape, q, k))

    stack.enter_context(patch_embed.register_forward_hook(keep_shape))
    stack.enter_context(module.qkv.register_forward_hook(keep_qk))


def _check_single(x: Tensor) -> None:
    if len(x) != 1:
        raise ValueError(f'the batch must be a single image, but got {len(x)}')
