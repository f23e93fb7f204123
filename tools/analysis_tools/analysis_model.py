"""Shared by the tools in this folder: build a model from one word of the command line."""

import ast
import inspect
import logging
import math
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmvmamba.analysis.model_flops import build_model
from mmvmamba.checkpoint.keys import convert_state_dict
from mmvmamba.checkpoint.matching import NEVER_REQUIRED, Matching
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.models.loading import adapt_state_dict, read_checkpoint
from mmvmamba.nn import ARCHS, VMambaNet
from mmvmamba.nn.settings import did_you_mean
from mmvmamba.registry import register_config_packages

#: ImageNet's mean and standard deviation of R, G and B in 0 ... 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class AnalysisModel(nn.Module):
    """A network in eval mode with its name, its output and its normalization.

    The output is that of ``part``, the network or its backbone, or with ``to_map`` its last map.
    ``mean`` and ``std`` are those of R, G and B in 0 ... 255, or with ``bgr`` of B, G and R, the
    order of the network's channels. ``weights`` is the origin of the weights, for plots.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        part: nn.Module,
        to_map: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        bgr: bool = False,
        weights: str = 'random weights',
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.bgr = bgr
        self.net = net
        self.part = part
        self.to_map = to_map
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.eval()

    def normalize(self, images: Tensor) -> Tensor:
        """Turn RGB images (N, 3, H, W) in 0 ... 255, of any dtype, into the network's input."""
        images = images.flip(1) if self.bgr else images
        return (images.to(self.mean) - self.mean) / self.std

    def forward(self, images: Tensor) -> Any:
        return last_map(self.part, images) if self.to_map else self.part(images)


def load_model(
    spec: str,
    checkpoint: str | None = None,
    *,
    to_map: bool = False,
    size: Sequence[int] | None = None,
) -> AnalysisModel:
    """Build a model, with weights from a file or initialized as its authors do.

    ``spec`` and ``checkpoint`` are words as in docs/analysis.md. The output is that of forward,
    without losses and post-processing, or with ``to_map`` the last map (N, C, h, w). Of a detector
    or a segmentor both are the backbone's. A model with an argument ``img_size`` is built for
    images of ``size``.

    Raises:
        ValueError: If the model is unknown, or the checkpoint does not match.
        TypeError: If the model does not have an argument, or the callable does not return a module.
    """
    target, *settings = re.split(r'\+(?=[A-Za-z_]\w*=)', spec)
    options = dict(_parse_setting(text, size) for text in settings)
    published = None
    if target in ARCHS:
        net = VMambaNet(target, **options)
        model = AnalysisModel(spec, net, net, to_map)
    elif re.fullmatch(r'[\w.]+:[\w.]+', target):
        net = _build_callable(target, options, size)
        model = AnalysisModel(spec, net, net, to_map, weights='as the callable built it')
    elif '::' in target or target.endswith('.py'):
        name = spec.replace(target, Path(target.partition('::')[2] or target).stem)
        model = _build_config(name, _read_config(target), options, to_map, size)
    else:
        cfg, published = _find_published(target)
        model = _build_config(spec, cfg, options, to_map, size)
    if checkpoint == 'pretrained':
        if not published:
            raise ValueError(f'no published weights are known for {spec!r}; pass a file or a URL')
        checkpoint = published
    if checkpoint is not None:
        load_weights(model, checkpoint, needs_head=not to_map)
        model.weights = Path(checkpoint).name
    return model


def _parse_setting(text: str, size: Sequence[int] | None) -> tuple[str, Any]:
    key, _, value = text.partition('=')
    if (key, value) == ('window_size', 'scaled'):  # 7 at 224 px
        return key, math.ceil(min(size or (224, 224)) / 32)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


# ---- building ------------------------------------------------------------------------------------


def _build_callable(target: str, options: dict[str, Any], size: Sequence[int] | None) -> nn.Module:
    try:
        build = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'model {target!r} cannot be imported: {error}; add the folder of the module '
            'to PYTHONPATH'
        ) from error
    if size is not None and 'img_size' in inspect.signature(build).parameters:
        options = dict(img_size=tuple(size)) | options
    net = build(**options)
    if not isinstance(net, nn.Module):
        raise TypeError(f'model {target!r} must return an nn.Module, but got {type(net).__name__}')
    # A function may return a trained network; MMEngine's classes leave the weights to the caller.
    if isinstance(build, type) and issubclass(build, BaseModule):
        _init_weights(net)
    return net


def _read_config(target: str) -> Config:
    """Read a config, given by path or as ``mmvmamba::...``."""
    register_config_packages()
    try:
        if '::' in target:
            return Config.fromstring(f'_base_ = {target!r}', '.py')
        return Config.fromfile(target)
    except Exception as error:  # a config is Python code, which may raise anything
        raise ValueError(
            f'config {target!r} cannot be read: {type(error).__name__}: {error}'
        ) from error


def _find_published(name: str) -> tuple[Config, str | None]:
    from mmpretrain import list_models
    from mmpretrain.apis import ModelHub

    names = list_models()
    if name.lower() not in map(str.lower, names):
        raise ValueError(
            f'model {name!r} is not an architecture of this package ({", ".join(sorted(ARCHS))}), '
            'a model name of mmpretrain, a config or a module:callable'
            f'{did_you_mean(name, [*ARCHS, *names])}'
        )
    found = ModelHub.get(name)
    return found.config, found.weights


def _build_config(
    name: str, cfg: Config, options: dict[str, Any], to_map: bool, size: Sequence[int] | None
) -> AnalysisModel:
    if 'backbone' not in (cfg.get('model') or {}):
        raise ValueError(f'the config of {name!r} must have a model with a backbone')
    scope = cfg.get('default_scope', 'mmengine')
    with MODELS.switch_scope_and_registry(scope) as registry:
        kind = cfg.model.backbone.type
        build = registry.get(kind) if isinstance(kind, str) else kind
    settings: dict[str, Any] = dict(pad_small_map=True)  # else a map below a window is an error
    if size is not None:
        settings |= dict(img_size=tuple(size))
    if to_map:
        settings |= dict(out_type='featmap', gap_before_final_norm=False)
    if cfg.model.backbone.get('init_cfg'):  # which may download weights
        settings |= dict(init_cfg=None)
    known = inspect.signature(build).parameters if build else ()
    settings = {key: value for key, value in settings.items() if key in known}
    cfg.model.backbone = cfg.model.backbone.to_dict() | settings | options
    net = build_model(cfg)
    _init_weights(net)
    # As in MMEngine's runner, the model's own goes first.
    prep = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # Images are read as BGR and stay so if nothing converts them.
    bgr = bool(prep.get('mean')) and not (prep.get('to_rgb') or prep.get('bgr_to_rgb'))
    weights = 'weights of its init_cfg' if "'Pretrained'" in str(cfg.model) else 'random weights'
    part = net if scope == 'mmpretrain' and not to_map else net.backbone
    mean, std = prep.get('mean') or MEAN, prep.get('std') or STD
    return AnalysisModel(name, net, part, to_map, mean, std, bgr, weights)


def _init_weights(net: nn.Module) -> None:
    """Initialize a network without MMEngine's log of each parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        net.init_weights()
    finally:
        logger.setLevel(level)


def last_map(net: nn.Module, images: Tensor) -> Tensor:
    """Compute the last map (N, C, h, w) of a classifier or a backbone."""
    if isinstance(net, VMambaNet):
        if net.out_indices is None:
            return net.forward_intermediates(images, 1, norm=True, intermediates_only=True)[0]
        return net(images)[-1]
    out = getattr(net, 'forward_features', net)(images)
    while isinstance(out, Sequence | Mapping) and out:
        out = (list(out.values()) if isinstance(out, Mapping) else out)[-1]
    if not isinstance(out, Tensor) or out.dim() != 4:
        got = f'shape {tuple(out.shape)}' if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f'{type(net).__name__} must return maps (N, C, H, W) from forward_features or '
            f'forward, but got {got}'
        )
    # timm's name for the layout of forward_features.
    return out.permute(0, 3, 1, 2) if getattr(net, 'output_fmt', 'NCHW') == 'NHWC' else out


# ---- weights -------------------------------------------------------------------------------------


def load_weights(model: AnalysisModel, checkpoint: str, needs_head: bool) -> None:
    """Load a checkpoint; without ``needs_head`` the layers behind the last map stay as they are."""
    net = model.net
    tensors = state_dict_of(read_checkpoint(checkpoint), checkpoint)
    if isinstance(net, VMambaNet):
        tensors, head = convert_state_dict(tensors), ('classifier.head.',)
    else:
        tensors = adapt_state_dict(net, tensors, checkpoint)
        tensors = resize_position_tensors(tensors, net)
        names = [name for name, _ in net.named_children() if name != 'backbone']
        head = tuple(f'{name}.' for name in names) if hasattr(net, 'backbone') else ()
    head = () if needs_head else head
    tensors = {key: value for key, value in tensors.items() if not key.startswith(head)}
    try:
        # Compared only after loading: the network's own load hooks rename and resize.
        result = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # another shape
        message = f'checkpoint {checkpoint!r} does not match {model.name}: {error}'
        raise ValueError(message) from error
    own = net.state_dict().keys()
    missing = [key for key in result.missing_keys if not key.endswith(NEVER_REQUIRED)]
    found = [key for key in own if key not in result.missing_keys]
    matching = Matching(len(own), found, missing, unexpected=result.unexpected_keys)
    matching.check(f'checkpoint {checkpoint!r}', model.name, allow_missing=head)
    MMLogger.get_current_instance().info(f'{model.name}, {checkpoint}: {matching}')


def resize_position_tensors(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Resize position embeddings and tables of relative positions of square grids bicubically.

    Not all of mmpretrain's load hooks do so, and one needs a function that SciPy removed.
    """
    own, resized = net.state_dict(), dict(tensors)
    extra = getattr(getattr(net, 'backbone', net), 'num_extra_tokens', 0)
    for key, value in tensors.items():
        if key not in own or own[key].shape == value.shape:
            continue
        if key.endswith('pos_embed') and value.dim() == 3:  # (1, extra tokens + positions, d)
            grid = _resize_grid(value[0, extra:], own[key].shape[1] - extra)
            resized[key] = torch.cat([value[0, :extra], grid])[None]
        elif key.endswith('relative_position_bias_table'):  # ((2 n - 1)^2, heads)
            resized[key] = _resize_grid(value, len(own[key]))
        elif key.endswith('relative_position_index'):  # follows from the size
            del resized[key]
    return resized


def _resize_grid(value: Tensor, length: int) -> Tensor:
    """Resize a square grid (positions, d), unless one of the two is not square."""
    source, target = math.isqrt(len(value)), math.isqrt(length)
    if (source**2, target**2) != (len(value), length):
        return value  # the model's own load hook may resize it
    grid = value.T.reshape(1, -1, source, source)
    return F.interpolate(grid, (target, target), mode='bicubic').flatten(2).squeeze(0).T
