"""Any model by one word: an architecture, a name of mmpretrain, a config or a callable."""

from __future__ import annotations

import ast
import inspect
import logging
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmvmamba.nn import ARCHS, VMambaNet
from mmvmamba.nn.layers import apply_norm
from mmvmamba.nn.settings import similar
from mmvmamba.registry import register_config_packages

from .model_flops import build_model
from .weights import load_weights

OUTPUTS = ('scores', 'map')
#: ImageNet's mean and standard deviation of R, G and B in 0 ... 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: The checkpoint that mmpretrain's model index names.
PUBLISHED = 'pretrained'


class AnalysisModel(nn.Module):
    """A network in eval mode with its name, its output and its normalization.

    Args:
        name (str): Name in pictures.
        net (nn.Module): The whole network.
        run (Callable): Maps normalized images to the output.
        mean (Sequence[float]): Mean of R, G and B in 0 ... 255. Defaults to ImageNet's.
        std (Sequence[float]): Their standard deviation. Defaults to ImageNet's.
        bgr (bool): The network, the mean and the deviation have the channels in the order B, G, R.
            Defaults to False.

    Attributes:
        weights (str): Origin of the weights, in pictures.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        run: Callable[[Tensor], Any],
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = 'random weights'
        self.bgr = bgr
        self.net = net
        self._run = run
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """Turn RGB images (N, 3, H, W) in 0 ... 255, of any dtype, into the network's input."""
        images = images.flip(1) if self.bgr else images
        return (images.to(self.mean) - self.mean) / self.std

    def forward(self, images: Tensor) -> Any:
        return self._run(images)


def load_model(
    spec: str,
    checkpoint: str | None = None,
    *,
    output: str = 'scores',
    size: Sequence[int] | None = None,
) -> AnalysisModel:
    """Build a model, with weights from a file or initialized as its authors do.

    Args:
        spec (str): A key of :data:`mmvmamba.nn.ARCHS`; a model name of mmpretrain; a config, as a
            path or as ``mmvmamba::...``; or ``package.module:callable``, which returns a module.
            ``+key=value`` after it, once or more, sets an argument of the architecture, of the
            config's backbone (dots go deeper) or of the callable. ``+window_size=scaled`` lets a
            Swin's windows grow with the image, from 7 at 224 px.
        checkpoint (str, optional): A file, a URL, or 'pretrained' for the weights that mmpretrain
            publishes under this name. Defaults to None: random weights of torch's current seed,
            those of an ``init_cfg`` of the config, or those that the callable built.
        output (str): 'scores', the model's output for images without losses and post-processing,
            or 'map', the last map of its backbone, (N, C, h, w). Of a detector or a segmentor both
            are the backbone's. Defaults to 'scores'.
        size (Sequence[int], optional): Height and width of the images, for which a model with an
            argument ``img_size`` is built. Defaults to None, the model's own.

    Raises:
        ValueError: If the model or an argument is unknown, or the checkpoint does not match.
        TypeError: If the callable does not return a module.
    """
    if output not in OUTPUTS:
        raise ValueError(f'output must be one of {OUTPUTS}, but got {output!r}')
    target, *settings = re.split(r'\+(?=[A-Za-z_][\w.]*=)', spec)
    options = dict(_parse_setting(text, size) for text in settings)
    published = None
    if target in ARCHS:
        model = _wrap(spec, VMambaNet(target, **options), output)
    elif re.fullmatch(r'[\w.]+:[\w.]+', target):
        model = _wrap(spec, _build_callable(target, options, size), output)
        model.weights = 'as the callable built it'
    elif '::' in target or target.endswith('.py'):
        name = spec.replace(target, Path(target.partition('::')[2] or target).stem)
        model = _build_config(name, target, read_config(target), options, output, size)
    else:
        cfg, published = _find_published(target)
        model = _build_config(spec, target, cfg, options, output, size)
    if checkpoint == PUBLISHED and not published:
        raise ValueError(f'no published weights are known for {spec!r}; give a file or a URL')
    if checkpoint is not None:
        file = published if checkpoint == PUBLISHED else checkpoint
        load_weights(model.net, model.name, file, whole=output == 'scores')
        model.weights = Path(file).name
    return model


def _parse_setting(text: str, size: Sequence[int] | None) -> tuple[str, Any]:
    key, _, value = text.partition('=')
    if (key, value) == ('window_size', 'scaled'):  # 7 at 224 px
        return key, math.ceil(min(size or (224, 224)) / 32)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _wrap(spec: str, net: nn.Module, output: str) -> AnalysisModel:
    return AnalysisModel(spec, net, _last_map(net) if output == 'map' else net)


def _build_callable(target: str, options: dict[str, Any], size: Sequence[int] | None) -> nn.Module:
    try:
        build = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'model {target!r} cannot be imported: {error}; the folder of a module of your own '
            'must be on PYTHONPATH'
        ) from error
    if not callable(build):
        raise ValueError(f'model {target!r} must be callable, but is a {type(build).__name__}')
    if size is not None and 'img_size' in _parameters(build):
        options = dict(img_size=tuple(size)) | options
    _check_options(target, build, options)
    net = build(**options)
    if not isinstance(net, nn.Module):
        raise TypeError(f'model {target!r} must return an nn.Module, but got {type(net).__name__}')
    # A function may return a trained network; MMEngine's classes leave the weights to the caller.
    if isinstance(build, type) and issubclass(build, BaseModule):
        with _quiet():
            net.init_weights()
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MMEngine from logging each parameter that it initializes."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _parameters(build: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(build).parameters
    except ValueError:  # a builtin
        return {}


def _check_options(target: str, build: Callable, options: Mapping[str, Any]) -> None:
    known = _parameters(build)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    unknown = sorted({key.split('.')[0] for key in options} - set(known))
    if unknown:
        raise ValueError(f'model {target!r} has no arguments {unknown}; it has {sorted(known)}')


def read_config(target: str) -> Config:
    """Read a config, given by path or as ``mmvmamba::...``.

    Raises:
        ValueError: If it does not exist or cannot be read.
    """
    register_config_packages()
    if '::' not in target and not Path(target).is_file():
        raise ValueError(f'config {target!r} does not exist')
    try:
        if '::' in target:
            return Config.fromstring(f'_base_ = {target!r}', '.py')
        return Config.fromfile(target)
    except Exception as error:  # a config is Python code, which may raise anything
        raise ValueError(
            f'config {target!r} cannot be read: {type(error).__name__}: {error}'
        ) from error


def _find_published(name: str) -> tuple[Config, str | None]:
    ours = ', '.join(sorted(ARCHS))
    try:
        from mmpretrain import list_models
        from mmpretrain.apis import ModelHub
    except ImportError as error:
        raise ValueError(
            f'model {name!r} is not an architecture of this package ({ours}), and the models of '
            f'mmpretrain cannot be imported: {error}'
        ) from error
    names = list_models()
    if name.lower() not in (known.lower() for known in names):
        raise ValueError(
            f'model {name!r} is not an architecture of this package ({ours}), a model name of '
            f'mmpretrain, a config or a module:callable{similar(name, [*ARCHS, *names])}'
        )
    found = ModelHub.get(name)
    return found.config, found.weights


def _build_config(
    name: str,
    target: str,
    cfg: Config,
    options: dict[str, Any],
    output: str,
    size: Sequence[int] | None,
) -> AnalysisModel:
    _set_backbone(target, cfg, options, output, size)
    with _quiet():
        net = build_model(cfg)
        net.init_weights()
    if output == 'map':
        run = _last_map(net.backbone)
    else:
        run = net if cfg.get('default_scope') == 'mmpretrain' else net.backbone
    # As in MMEngine's runner, the model's own goes first.
    prep = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # Images are read as BGR and stay so if nothing converts them.
    bgr = bool(prep.get('mean')) and not (prep.get('to_rgb') or prep.get('bgr_to_rgb'))
    model = AnalysisModel(name, net, run, prep.get('mean') or MEAN, prep.get('std') or STD, bgr)
    if _has_pretrained(cfg.model):
        model.weights = 'weights of its init_cfg'
    return model


def _set_backbone(
    target: str, cfg: Config, options: dict[str, Any], output: str, size: Sequence[int] | None
) -> None:
    """Adapt a config's backbone to the user's settings, the image size and the output."""
    if 'backbone' not in (cfg.get('model') or {}):
        raise ValueError(f'config {target!r} must have a model with a backbone')
    with MODELS.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')) as registry:
        kind = cfg.model.backbone.type
        build = registry.get(kind) if isinstance(kind, str) else kind
    if build is None:
        raise ValueError(f'config {target!r} has a backbone {kind!r}, which is not registered')
    _check_options(target, build, options)
    settings: dict[str, Any] = dict(pad_small_map=True)  # else a map below a window is an error
    if size is not None:
        settings |= dict(img_size=tuple(size))
    if output == 'map':
        settings |= dict(out_type='featmap', gap_before_final_norm=False)
    known = _parameters(build)
    settings = {key: value for key, value in settings.items() if key in known} | options
    backbone = cfg.model.backbone.to_dict()
    for key, value in settings.items():
        *path, last = key.split('.')
        parent = backbone
        for name in path:
            parent = parent.setdefault(name, {})
        parent[last] = value
    cfg.model.backbone = backbone


def _has_pretrained(cfg: Any) -> bool:
    """Check if an ``init_cfg`` in a model's config names a file."""
    if isinstance(cfg, Mapping):
        return cfg.get('type') == 'Pretrained' or any(map(_has_pretrained, cfg.values()))
    return isinstance(cfg, list | tuple) and any(map(_has_pretrained, cfg))


def _last_map(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the last map (N, C, h, w) of a network."""
    is_ours = isinstance(net, VMambaNet)
    features = net if is_ours else getattr(net, 'forward_features', net)
    # timm's name for the layout of forward_features.
    is_nhwc = not is_ours and getattr(net, 'output_fmt', 'NCHW') == 'NHWC'

    def run(images: Tensor) -> Tensor:
        if is_ours and net.out_indices is None:
            out = apply_norm(net.classifier.norm, net.forward_features(images))
            return out.permute(0, 3, 1, 2)
        out = features(images)
        while isinstance(out, Sequence | Mapping) and out:
            out = (list(out.values()) if isinstance(out, Mapping) else out)[-1]
        if not isinstance(out, Tensor) or out.dim() != 4:
            got = f'shape {tuple(out.shape)}' if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f'{type(net).__name__} must return maps (N, C, H, W) from forward_features or '
                f'forward, but got {got}'
            )
        return out.permute(0, 3, 1, 2) if is_nhwc else out

    return run
