"""Any model by one word: an architecture of ours, a name of mmpretrain, a config or a callable."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import logging
import math
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
from mmvmamba.registry import register_config_packages

from .model_flops import build_model
from .weights import load_weights

OUTPUTS = ('scores', 'map')
#: ImageNet's mean and deviation of R, G and B in 0 ... 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: What the weights of a model are called that has no checkpoint.
RANDOM, OF_CALLABLE = 'random weights', 'as the callable built it'
OF_INIT_CFG = 'weights of its init_cfg'
#: A checkpoint by this name is the file that mmpretrain's model index names.
PUBLISHED = 'pretrained'
#: The value of ``window_size`` that grows with the image: 7 at 224 px.
SCALED = 'scaled'
MODEL_HELP = (
    'an architecture of ours (tiny, vanilla_base, ...), a model name of mmpretrain, a config '
    '(a path or mmvmamba::...) or package.module:callable; +key=value after it sets an argument '
    'of the backbone or of the callable: tiny+ssm_init=zero, swin-tiny_16xb64_in1k+window_size='
    'scaled'
)
CHECKPOINT_HELP = "a file or a URL, 'pretrained' for the weights that mmpretrain publishes"


class AnalysisModel(nn.Module):
    """A model in eval mode as the tools see it.

    Args:
        name (str): What it is called in figures.
        weights (str): What its weights are called in figures.
        net (nn.Module): The network, whole.
        run (Callable): Maps images to the output.
        mean (Sequence[float]): Mean of R, G and B in 0 ... 255. Defaults to ImageNet's.
        std (Sequence[float]): Their standard deviation. Defaults to ImageNet's.
        bgr (bool): Whether the network, its mean and deviation have the channels in the order B, G,
            R. Defaults to False.
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
        self.weights = RANDOM
        self.bgr = bgr
        self.net = net
        self._run = run
        for key, value in (('mean', mean), ('std', std)):
            self.register_buffer(key, torch.tensor(value).view(-1, 1, 1), persistent=False)
        self.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images (N, 3, H, W) in 0 ... 255, of any dtype -> what the network takes."""
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
    """Builds a model, with weights from a file or initialised as its authors do.

    Args:
        spec (str): A key of :data:`mmvmamba.nn.ARCHS`; a model name of mmpretrain; a config, as a
            path or as ``mmvmamba::...``; or ``package.module:callable``, which returns a module.
            ``+key=value`` after it, once or more, sets an argument of the architecture, of the
            config's backbone (dots go deeper) or of the callable. ``+window_size=scaled`` lets a
            Swin's windows grow with the image, from 7 at 224 px.
        checkpoint (str, optional): A file, a URL, or 'pretrained' for the weights that mmpretrain
            publishes under this name. Defaults to None: random weights of torch's current seed,
            what an ``init_cfg`` of the config loads, or those that the callable built.
        output (str): 'scores', what the model gives for images without losses and
            post-processing, or 'map', the last map of its backbone, (N, C, h, w). Of a detector
            or a segmentor both are the backbone's. Defaults to 'scores'.
        size (Sequence[int], optional): Height and width of the images, which a model with a fixed
            size (an argument ``img_size``) is built for. Defaults to None, the model's own.

    Raises:
        ValueError: If there is no such model or argument, or the checkpoint does not fit.
        TypeError: If the callable returns no module.
    """
    if output not in OUTPUTS:
        raise ValueError(f'output must be one of {OUTPUTS}, but got {output!r}')
    target, *settings = re.split(r'\+(?=[A-Za-z_][\w.]*=)', spec)
    options = dict(_parse_setting(text, size) for text in settings)
    if re.fullmatch(r'[\w.]+:[\w.]+', target):
        net = _build_callable(target, options, size)
        model = AnalysisModel(spec, net, _last_map(net) if output == 'map' else net)
        model.weights = OF_CALLABLE
    elif target in ARCHS:
        net = VMambaNet(target, **options)
        model = AnalysisModel(spec, net, _last_map(net) if output == 'map' else net)
    else:
        model, published = _load_config_model(spec, target, options, output, size)
        checkpoint = published if checkpoint == PUBLISHED and published else checkpoint
    if checkpoint == PUBLISHED:
        raise ValueError(f'no published weights are known for {spec!r}; give a file or a URL')
    if checkpoint is not None:
        load_weights(model.net, model.name, checkpoint, whole=output == 'scores')
        model.weights = Path(checkpoint).name
    return model


def _parse_setting(text: str, size: Sequence[int] | None) -> tuple[str, Any]:
    key, _, value = text.partition('=')
    if key == 'window_size' and value == SCALED:
        return key, math.ceil(min(size or (224, 224)) / 32)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _build_callable(target: str, options: dict[str, Any], size: Sequence[int] | None) -> nn.Module:
    """Imports ``package.module:callable`` and calls it."""
    module, _, path = target.partition(':')
    try:
        build = importlib.import_module(module)
        for name in path.split('.'):
            build = getattr(build, name)
    except (ImportError, AttributeError) as error:
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
        raise TypeError(f'model {target!r} must give an nn.Module, but gave {type(net).__name__}')
    # What a function returns may be trained. MMEngine's classes leave it to their caller.
    if isinstance(build, type) and issubclass(build, BaseModule):
        with _quiet():
            net.init_weights()
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps MMEngine from logging each parameter, and mmpretrain what it makes of a config."""
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
    except ValueError:  # a builtin, which is no model
        return {}


def _check_options(target: str, build: Callable, options: Mapping[str, Any]) -> None:
    known = _parameters(build)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    unknown = sorted({key.split('.')[0] for key in options} - set(known))
    if unknown:
        raise ValueError(f'model {target!r} has no arguments {unknown}; it has {sorted(known)}')


def _load_config_model(
    spec: str, target: str, options: dict[str, Any], output: str, size: Sequence[int] | None
) -> tuple[AnalysisModel, str | None]:
    """A model of a config or of mmpretrain's index, and where its weights are published."""
    if '::' in target or target.endswith('.py'):
        cfg, published = read_config(target), None
        if 'backbone' not in (cfg.get('model') or {}):
            raise ValueError(f'config {target!r} must have a model with a backbone')
        spec = spec.replace(target, Path(target.partition('::')[2] or target).stem)
    else:
        cfg, published = _find_published(target)
    cfg.model.backbone = _adapted_backbone(target, cfg, options, output, size)
    with _quiet():
        net = build_model(cfg)
        net.init_weights()
    is_classifier = cfg.get('default_scope') == 'mmpretrain'
    # A backbone's maps; of a classifier without losses, the head's scores.
    run = net if is_classifier and output == 'scores' else net.backbone
    if output == 'map':
        run = _last_map(net.backbone)
    # As in MMEngine's runner, the model's own goes first.
    prep = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # Images are read as BGR, which is what the network sees where nothing converts them.
    bgr = bool(prep.get('mean')) and not (prep.get('to_rgb') or prep.get('bgr_to_rgb'))
    mean, std = prep.get('mean') or MEAN, prep.get('std') or STD
    model = AnalysisModel(spec, net, run, mean, std, bgr)
    if _has_pretrained(cfg.model):
        model.weights = OF_INIT_CFG
    return model, published


def _has_pretrained(cfg: Any) -> bool:
    """Whether a model's ``init_cfg`` names a file."""
    if isinstance(cfg, Mapping):
        init = cfg.get('init_cfg')
        inits = init if isinstance(init, Sequence) else [init]
        found = any(isinstance(i, Mapping) and i.get('type') == 'Pretrained' for i in inits)
        return found or any(map(_has_pretrained, cfg.values()))
    return isinstance(cfg, list | tuple) and any(map(_has_pretrained, cfg))


def read_config(target: str) -> Config:
    """Reads a config, a path or ``mmvmamba::...``.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    register_config_packages()
    if '::' not in target and not Path(target).is_file():
        raise ValueError(f'config {target!r} does not exist')
    try:
        if '::' in target:
            cfg = Config.fromstring(f'_base_ = {target!r}', '.py')
        else:
            cfg = Config.fromfile(target)
    except Exception as error:  # whatever the Python code of a config raises
        raise ValueError(
            f'config {target!r} cannot be read: {type(error).__name__}: {error}'
        ) from error
    return cfg


def _find_published(name: str) -> tuple[Config, str | None]:
    """The config of a name of mmpretrain's model index, and the address of its weights."""
    try:
        from mmpretrain import list_models
        from mmpretrain.apis import ModelHub
    except ImportError as error:
        raise ValueError(
            f'model {name!r} is none of ours ({", ".join(sorted(ARCHS))}), and mmpretrain, whose '
            f'models have other names, cannot be imported: {error}'
        ) from error
    names = list_models()
    if name.lower() not in (known.lower() for known in names):
        near = difflib.get_close_matches(name, [*ARCHS, *names], n=4, cutoff=0.4)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise ValueError(
            f'model {name!r} is no architecture of ours ({", ".join(sorted(ARCHS))}), no model '
            f'name of mmpretrain, no config and no module:callable{hint}'
        )
    found = ModelHub.get(name)
    return found.config, found.weights


def _adapted_backbone(
    target: str, cfg: Config, options: dict[str, Any], output: str, size: Sequence[int] | None
) -> dict[str, Any]:
    """The backbone's config with the user's settings, for images of this size and this output."""
    with MODELS.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')) as registry:
        kind = cfg.model.backbone.type
        build = registry.get(kind) if isinstance(kind, str) else kind
    if build is None:
        raise ValueError(f'{target!r}: there is no backbone {kind!r}')
    _check_options(target, build, options)
    known = _parameters(build)
    changes: dict[str, Any] = {}
    if size is not None and 'img_size' in known:
        changes['img_size'] = tuple(size)
    if 'pad_small_map' in known:
        changes['pad_small_map'] = True  # a map smaller than a window is an error without
    if output == 'map' and 'out_type' in known:
        changes['out_type'] = 'featmap'
    if output == 'map' and 'gap_before_final_norm' in known:
        changes['gap_before_final_norm'] = False
    backbone = cfg.model.backbone.to_dict()
    for key, value in (changes | options).items():
        *path, last = key.split('.')
        place = backbone
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return backbone


def _last_map(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The last map (N, C, h, w) of a network."""
    # timm's name for what forward_features gives; ours is read below.
    ours = isinstance(net, VMambaNet)
    channels_last = not ours and getattr(net, 'output_fmt', 'NCHW') == 'NHWC'

    def run(images: Tensor) -> Tensor:
        if not ours:
            out = getattr(net, 'forward_features', net)(images)
        elif net.out_indices is not None:
            out = net(images)
        else:
            out = apply_norm(net.classifier.norm, net.forward_features(images))
            out = out.permute(0, 3, 1, 2)
        while isinstance(out, Sequence | Mapping) and out:
            out = (list(out.values()) if isinstance(out, Mapping) else out)[-1]
        if not isinstance(out, Tensor) or out.dim() != 4:
            got = f'shape {tuple(out.shape)}' if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f'{type(net).__name__} must give maps (N, C, H, W), from forward_features or '
                f'forward, but gave {got}'
            )
        return out.permute(0, 3, 1, 2) if channels_last else out

    return run
