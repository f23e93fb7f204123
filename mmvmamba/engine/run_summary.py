"""Texts about a run for the console: environment, data, model, schedule, outputs and results."""

import datetime
import numbers
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvmamba import info
from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.environment import PACKAGES, installed_version
from mmvmamba.version import __version__

from .checks.configs import leaf_datasets
from .utils import accumulated_iterations, load_from, optim_wrappers, resumes, unwrapped
from .work_dir import read_last_checkpoint

_SHOWN_CLASSES = 10
_WIDTH = 13  # of the titles on the left
#: The beginning of a section's line that stands out on a terminal.
_ATTENTION = '! '
#: COCO's metrics of one kind of result, such as 'coco/bbox_mAP_50'.
_COCO_METRIC = re.compile(r'(?:.*/)?(bbox|segm|proposal|keypoints)_(.+)')
#: What a validation logs in addition to its metrics.
NOT_METRICS = ('step', 'time', 'data_time')

Section = tuple[str, Sequence[str]]


class Trained(NamedTuple):
    """Best and last checkpoint of a run, and what the best is selected by."""

    best: str | None
    score: str
    last: str | None


def layout(sections: Iterable[Section]) -> tuple[str, list[int]]:
    """Arrange titles on the left and their lines on the right; empty sections are left out.

    Returns:
        tuple[str, list[int]]: The text, and the indices of its lines that need attention.
    """
    lines, attention = [''], []
    for title, texts in sections:
        for i, text in enumerate(texts):
            mark = _ATTENTION if text.startswith(_ATTENTION) else ''
            if mark:
                attention.append(len(lines))
            head = (title if i == 0 else mark).ljust(_WIDTH)
            lines.append(f'{head}{text if i == 0 else text.removeprefix(mark)}')
    return '\n'.join(lines), attention


def environment(cfg: Config, on_cpu: bool) -> Section:
    """Describe versions, device and the backend of the scans.

    Args:
        cfg (Config): The config of the run.
        on_cpu (bool): Whether the run uses no accelerator.
    """
    found = (
        f'{package} {version}'
        for package, names in PACKAGES.items()
        for version in [next(filter(None, map(installed_version, names)), None)]
        if version is not None
    )
    if on_cpu or not torch.cuda.is_available():
        key, device = 'cpu', f'CPU, {count(torch.get_num_threads(), "thread")}'
        if not torch.cuda.is_available():
            device += '; PyTorch sees no GPU'
    else:
        index = torch.cuda.current_device()
        key, device = f'cuda:{index}', torch.cuda.get_device_name(index)
    if get_world_size() > 1:
        device = f'{get_world_size()} processes, the first on {device}'
    backend = _backbone(cfg).get('backend', 'auto')
    scan = info.backends().get(key, 'unknown')
    if backend != 'auto':
        scan = f'{backend}, as model.backbone.backend is set'
    return 'Environment', [
        f'Python {platform.python_version()}, torch {torch.__version__}, mmvmamba {__version__}',
        ', '.join(found),
        f'device: {device}',
        f'scan: {scan}',
    ]


def data(runner: Any, *stages: str) -> Section:
    """Describe the datasets of the stages 'train', 'val' or 'test' and their classes."""
    lines, classes = [], None
    for stage in stages:
        loader = getattr(getattr(runner, f'{stage}_loop', None), 'dataloader', None)
        dataset = getattr(loader, 'dataset', None)
        if dataset is None:
            continue
        leaves = list(leaf_datasets(dataset))
        more = f' and {len(leaves) - 1} more' if len(leaves) > 1 else ''
        source = f'{type(leaves[0]).__name__} {_source(leaves[0])}'
        lines.append(f'{stage}: {size(dataset)}, {source}{more}')
        classes = classes or (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes:
        others = f', ... ({classes[-1]})' if len(classes) > _SHOWN_CLASSES else ''
        names = ', '.join(map(str, classes[:_SHOWN_CLASSES]))
        lines.append(f'{count(len(classes), "class", "classes")}: {names}{others}')
    return 'Data', lines


def size(dataset: Any) -> str:
    """Return the number of images; an iterable dataset does not know it."""
    return count(len(dataset), 'image') if hasattr(dataset, '__len__') else 'stream of images'


def _source(dataset: Any) -> str:
    """Return the annotation file or the folder of a dataset."""
    prefixes = getattr(dataset, 'data_prefix', None)
    folders = list(prefixes.values()) if isinstance(prefixes, Mapping) else []
    for path in (getattr(dataset, 'ann_file', None), *folders):
        if isinstance(path, str) and path:
            return short_path(path)
    return ''


def model(runner: Any) -> Section:
    """Describe the model and what its weights come from."""
    net = unwrapped(runner.model)
    backbone = getattr(net, 'backbone', None)
    name = type(net).__name__
    if backbone is not None:
        name += f' with {type(backbone).__name__}'
    if not any(isinstance(m, FullyShardedDataParallel) for m in runner.model.modules()):
        total = sum(p.numel() for p in net.parameters())
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        name += f', {total:,} parameters' + (f', {trained:,} trained' if trained < total else '')
    return 'Model', [name, f'weights: {_weights(runner)}']


def _weights(runner: Any) -> str:
    source = load_from(runner)
    if resumes(runner):
        return (
            f'resumed from {redacted(str(source or runner.work_dir))} at epoch {runner.epoch}, '
            f'iteration {runner.iter}'
        )
    if source:
        return f'from {redacted(str(source))}'
    if found := _pretrained(_model(runner.cfg)):
        return f'from {found}'
    if found := _pretrained(_backbone(runner.cfg)):
        return f'backbone from {found}, the rest random'
    return 'random'


def _pretrained(settings: Mapping[str, Any]) -> str | None:
    """Return the checkpoint that initializes a model or a backbone."""
    inits = settings.get('init_cfg')
    for init in inits if isinstance(inits, list | tuple) else [inits]:
        if isinstance(init, Mapping) and init.get('checkpoint'):
            return redacted(str(init['checkpoint']))
    source = settings.get('pretrained')
    if isinstance(source, str):
        return redacted(source)
    return 'its pretrained weights' if source else None


def _model(cfg: Config) -> Mapping[str, Any]:
    """Return the settings of the model, also within test-time augmentation."""
    settings = cfg.get('model')
    while isinstance(settings, Mapping) and isinstance(settings.get('module'), Mapping):
        settings = settings['module']
    return settings if isinstance(settings, Mapping) else {}


def _backbone(cfg: Config) -> Mapping[str, Any]:
    backbone = _model(cfg).get('backbone')
    return backbone if isinstance(backbone, Mapping) else {}


def schedule(runner: Any) -> Section:
    """Describe the length of training, the batches and the optimizer."""
    loop, world = runner.train_loop, get_world_size()
    loader = loop.dataloader
    batches = getattr(loader, 'batch_sampler', None)
    batch = getattr(batches, 'batch_size', None) or getattr(loader, 'batch_size', None) or 1
    by_epoch = not isinstance(loop, IterBasedTrainLoop)
    length = count(loop.max_iters, 'iteration')
    if by_epoch:
        length = f'{count(loop.max_epochs, "epoch")} of {count(len(loader), "iteration")}'
    length += f', batch size {batch}'
    if world > 1:
        length += f' x {world} processes = {batch * world} images per iteration'
    if getattr(runner, 'val_loop', None) is None:
        length += '; no validation'
    elif getattr(loop, 'val_interval', None):
        length += f'; validation every {_interval(loop.val_interval, by_epoch)}'
    wrappers = optim_wrappers(runner.optim_wrapper)
    accumulated = max(map(accumulated_iterations, wrappers))
    rate = _learning_rate(runner.cfg, batch * world, accumulated)
    return 'Schedule', [length, *map(_optimizer, wrappers), *rate]


def _interval(length: int, by_epoch: bool) -> str:
    unit = 'epoch' if by_epoch else 'iteration'
    return unit if length == 1 else count(length, unit)


def _optimizer(wrapper: Any) -> str:
    text = type(wrapper.optimizer).__name__
    decay = getattr(wrapper.optimizer, 'defaults', {}).get('weight_decay')
    if decay is not None:
        text += f', weight decay {decay:g}'
    accumulated = accumulated_iterations(wrapper)
    if accumulated > 1:
        text += f', gradients of {accumulated} iterations accumulated'
    kind = type(wrapper).__name__
    return text if kind == 'OptimWrapper' else f'{text}, {kind}'


def _learning_rate(cfg: Config, images: int, accumulated: int) -> list[str]:
    """Return the learning rate, on a line that stands out if it is scaled or may need to be.

    Args:
        cfg (Config): The config of the run.
        images (int): Images per iteration, on which MMEngine's scaling is based.
        accumulated (int): Iterations per step of the optimizer.
    """
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    if not isinstance(rate, int | float):
        return []
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    scaled_to = images if scaling.get('enable') else base
    if not base or base == scaled_to == images * accumulated:
        return [f'learning rate {rate:g}']
    scaled = f'{rate * images / base:g}'
    if accumulated > 1:
        now = f'{rate:g}' if scaled_to == base else f'{rate:g} -> {scaled}'
        right = f'optim_wrapper.optimizer.lr={rate * images * accumulated / base:g}'
        return [
            f'{_ATTENTION}learning rate {now}: {rate:g} is for {base} images per optimizer step, '
            f'and this run has {images * accumulated}; --auto-scale-lr counts the {images} of an '
            f'iteration only, so set {right} and auto_scale_lr.enable=False'
        ]
    if scaling.get('enable'):
        return [
            f'{_ATTENTION}learning rate {rate:g} -> {scaled}: {rate:g} is for {base} images per '
            f'iteration, and this run has {images}'
        ]
    return [
        f'{_ATTENTION}learning rate {rate:g}, which is for {base} images per iteration, but this '
        f'run has {images}: --auto-scale-lr would use {scaled}'
    ]


def outputs(runner: Any, checkpoints: bool = True) -> Section:
    """Describe where the log, the config and the checkpoints are written."""
    lines = [f'log: {log_file(runner)}']
    if config := dumped_config(runner):
        lines.append(f'config: {short_path(config)}')
    hook = _checkpoint_hook(runner)
    if checkpoints and hook is not None:
        interval = getattr(hook, 'interval', -1)
        every = f', every {_interval(interval, hook.by_epoch)}' if interval > 0 else ''
        best = getattr(hook, 'save_best', None)
        best = f', best by {", ".join(hook.key_indicators)}' if best else ''
        folder = short_path(str(hook.out_dir or runner.work_dir))
        lines.append(f'checkpoints: {folder}{every}{best}')
    return 'Output', lines


def log_file(runner: Any) -> str:
    """Return the path of a run's log."""
    return short_path(getattr(runner.logger, 'log_file', None) or runner.work_dir)


def dumped_config(runner: Any) -> str | None:
    """Return the path of the whole config that MMEngine has written, or None."""
    if not runner.cfg.filename:
        return None
    name = os.path.basename(runner.cfg.filename)
    paths = (os.path.join(folder, name) for folder in (runner.log_dir, runner.work_dir))
    return next(filter(os.path.isfile, paths), None)


def _checkpoint_hook(runner: Any) -> Any:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def trained(runner: Any) -> Trained:
    """Find the best and the last checkpoint of a run."""
    hook = _checkpoint_hook(runner)
    best, score = None, ''
    known = runner.message_hub.runtime_info
    if hook is not None and hook.save_best:
        key = hook.key_indicators[0]
        single = len(hook.key_indicators) == 1
        best = known.get('best_ckpt' if single else f'best_ckpt_{key}')
        value = known.get('best_score' if single else f'best_score_{key}')
        score = f'{key} {value:.4f}' if isinstance(value, numbers.Real) else key
    try:
        last = read_last_checkpoint(runner.work_dir)
    except ValueError:
        last = None
    return Trained(best, score, last)


def results(
    runner: Any, metrics: Mapping[str, Any], seconds: float, first_iteration: int = 0
) -> list[Section]:
    """Describe a finished training run: its checkpoints, its time and the next commands.

    Args:
        runner (Runner): The runner.
        metrics (Mapping[str, Any]): The metrics of the last validation.
        seconds (float): The time since the first iteration.
        first_iteration (int): The iteration that the run started or resumed at. Defaults to 0.
    """
    found = trained(runner)
    checkpoint = found.best or found.last
    best = [f'{found.score}: {short_path(found.best)}'] if found.best else []
    last = [short_path(found.last)] if found.last else []
    table = [] if found.best else metric_table(metrics)
    if table and found.last:
        table.append('to keep the best checkpoint, set default_hooks.checkpoint.save_best=auto')
    return [
        ('Finished', [f'{_done(runner, first_iteration)} in {duration(seconds)}']),
        ('Best', best),
        ('Validation', table),
        ('Last', last),
        ('Log', [log_file(runner)]),
        ('Next', next_commands(dumped_config(runner), checkpoint)),
    ]


def _done(runner: Any, first_iteration: int) -> str:
    text = count(runner.iter, 'iteration')
    if not isinstance(runner.train_loop, IterBasedTrainLoop):
        text = f'{count(runner.epoch, "epoch")}, {text}'
    if first_iteration:
        text += f'; since resuming, {count(runner.iter - first_iteration, "iteration")}'
    return text


def next_commands(config: str | None, checkpoint: str | None) -> list[str]:
    """Return the commands that test a checkpoint and draw its predictions, if the tools exist."""
    main = getattr(sys.modules['__main__'], '__file__', None)
    if main is None or config is None or checkpoint is None:
        return []
    tools = Path(main).resolve().parent
    commands = (
        (tools / 'test.py', [short_path(config), short_path(checkpoint)]),
        (
            tools.parent / 'demo' / 'inference.py',
            ['IMAGE_OR_FOLDER', short_path(config), short_path(checkpoint)],
        ),
    )
    return [
        shlex.join(['python', short_path(str(script)), *arguments])
        for script, arguments in commands
        if script.is_file()
    ]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, numbers.Real) and key not in NOT_METRICS
    }


def metric_table(metrics: Mapping[str, Any]) -> list[str]:
    """Return a table of metrics: for COCO a row for boxes and one for masks, else one of names."""
    values = _numbers(metrics)
    grid: dict[str, dict[str, float]] = {}
    for key in list(values):
        if match := _COCO_METRIC.fullmatch(key):
            grid.setdefault(match[1], {})[match[2]] = values.pop(key)
    rows = []
    if grid:
        columns = list(dict.fromkeys(name for row in grid.values() for name in row))
        rows.append(['', *columns])
        # -1 means that there are no such objects.
        rows += [
            [kind, *('-' if row.get(c, -1) == -1 else f'{row[c]:.3f}' for c in columns)]
            for kind, row in grid.items()
        ]
    width = max(map(len, values), default=0)
    return [*_aligned(rows), *(f'{key:<{width}}  {value:.4f}' for key, value in values.items())]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def count(number: int, unit: str, units: str | None = None) -> str:
    """Return a number with its unit, e.g. '1 class' or '1,200 images'."""
    return f'{number:,} {unit if number == 1 else units or unit + "s"}'


def duration(seconds: float) -> str:
    """Return a time as H:MM:SS."""
    return str(datetime.timedelta(seconds=round(seconds)))


def short_path(path: str) -> str:
    """Return a path relative to the working directory if it is inside it."""
    if '://' in path:
        return redacted(path)
    path = os.path.abspath(path)
    # relpath raises an error if the path is on another drive.
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
