"""Arguments and config of the tools."""

import argparse
import glob
import inspect
import os
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import FlexibleRunner

from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.engine.runner.distributed import runs_on_cpu
from mmvmamba.models.loading import local_path, use_safe_loader
from mmvmamba.nn.settings import did_you_mean

from .checks.configs import check_settings
from .checks.metrics import check_top_k
from .errors import UserError

#: Keys that tools read from a config besides the runners' arguments.
_TOOL_KEYS = ('find_unused_parameters', 'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline')
#: The default hooks of MMEngine's runners, the only ones that they allow to be None.
_RUNNER_HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`load_config` reads."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=_key_value,
        action=_Options,
        default={},
        help='override settings of the config: model.backbone.with_cp=True, key="[a,b]" '
        'or key=a,b for a list, key="[(a,b),(c,d)]" for a nested one; no spaces inside',
    )
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)


class _Options(DictAction):
    """MMEngine's parser of values, with an error for those that it cannot parse."""

    def __call__(self, *args: Any) -> None:
        try:
            super().__call__(*args)
        except (AssertionError, RecursionError) as error:
            text = ' '.join(args[2])
            if isinstance(error, AssertionError):
                reason = 'the brackets do not match'
            elif '{' in text or 'dict(' in text:
                reason = 'write a dict as KEY.NAME=VALUE for each of its names, or in a config'
            else:
                reason = 'write nested lists as "[(a,b),(c,d)]"'
            raise argparse.ArgumentError(self, f'{text} cannot be parsed; {reason}') from error


def _key_value(text: str) -> str:
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'must be KEY=VALUE, but got {text!r}')
    return text


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        help="folder of logs and checkpoints; by default the config's work_dir, else "
        'work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='launcher of a distributed run (default: none)',
    )
    # torchrun always sets LOCAL_RANK, but passes --local-rank only if asked to.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0, help='set by launchers'
    )


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, merge ``--cfg-options`` and set launcher and work directory.

    Raises:
        UserError: If the file does not exist or cannot be read, or an option does not match it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not os.path.isfile(args.config):
        files = glob.glob(os.path.join(os.path.dirname(args.config), '*.py'))
        raise UserError(f'config {args.config!r} does not exist{did_you_mean(args.config, files)}')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # the Python code of a config may raise anything
        raise UserError(
            f'config {args.config!r} cannot be read: {type(error).__name__}: {error}'
        ) from error
    _merge_options(cfg, args.cfg_options)
    if 'model' not in cfg:
        raise UserError(f'config {args.config!r} has no model; its keys are {sorted(cfg)}')
    check_settings(cfg)
    check_top_k(cfg)
    use_safe_loader()
    cfg.launcher = args.launcher
    name = os.path.splitext(os.path.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    if task_of(cfg) == 'mmpretrain':
        _set_classification_loaders(cfg)
    hooks = cfg.get('default_hooks') or {}
    for key in [k for k, hook in hooks.items() if hook is None and k not in _RUNNER_HOOKS]:
        del hooks[key]
    add_hook(cfg, type='mmvmamba.MixedSizesHook')
    return cfg


def task_of(cfg: Config) -> str | None:
    """Return the package whose models and datasets a config uses, e.g. 'mmdet'."""
    return cfg.get('default_scope') or cfg.model.get('_scope_')


def check_checkpoint(cfg: Config, whole: bool) -> None:
    """Find or download ``load_from``, and add the hook that compares it with the model.

    Raises:
        UserError: If the file does not exist or cannot be downloaded, or its URL scheme is not
            supported.
    """
    if path := _first_weights(cfg):
        try:
            path = local_path(path)
        except (ValueError, TypeError) as error:
            hint = (
                '. Without a network, download the file on another machine and pass its path, for '
                'training with --cfg-options load_from=PATH'
            )
            raise UserError(
                f'{error}{hint if "cannot be downloaded" in str(error) else ""}'
            ) from None
        if path is not None and not os.path.isfile(os.path.expanduser(path)):
            raise UserError(f'checkpoint {redacted(path)!r} does not exist')
    add_hook(cfg, type='mmvmamba.CheckpointMatchingHook', whole=whole)


def _first_weights(cfg: Config) -> str | None:
    """Return the file that a run begins with, if it does not resume from its work directory."""
    hooks = cfg.get('default_hooks') or {}
    start = (hooks.get('resume') or {}).get('load_from')
    if cfg.get('load_from') or not start:
        return cfg.get('load_from')
    name = os.path.basename(cfg.work_dir.rstrip(os.sep))
    out_dir = (hooks.get('checkpoint') or {}).get('out_dir')
    folders = [cfg.work_dir, *([os.path.join(out_dir, name)] if out_dir else [])]
    is_resumed = any(glob.glob(os.path.join(glob.escape(f), '*.pth')) for f in folders)
    return None if is_resumed else start


def resume_from(cfg: Config, path: str) -> None:
    """Resume a run from a checkpoint.

    'auto' means the last complete one in the work directory. If there is none, training starts from
    the config's ``load_from``.
    """
    cfg.resume = True
    if path == 'auto':
        _add_resume_hook(cfg).load_from = cfg.get('load_from')
        path = None
    cfg.load_from = path


def use_amp(cfg: Config) -> None:
    """Turn on mixed precision: fp16 with loss scaling, or bfloat16 on a CPU."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'mmvmamba.CPUAmpOptimWrapper'):
        raise UserError(f'--amp does not support optim_wrapper.type {kind!r}')
    if runs_on_cpu():
        for name in ('loss_scale', 'dtype'):
            wrapper.pop(name, None)
        wrapper.type = 'mmvmamba.CPUAmpOptimWrapper'
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def add_hook(cfg: Config, **hook: Any) -> None:
    """Add a hook to a config, which may be that of an earlier run and have one of this type."""
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [h for h in hooks if h.get('type') != hook['type']] + [hook]


def _add_resume_hook(cfg: Config) -> ConfigDict:
    """Return the settings of the hook that resumes runs; turn it on if it is not."""
    cfg.default_hooks = cfg.get('default_hooks') or ConfigDict()
    if cfg.default_hooks.get('resume') is None:
        cfg.default_hooks.resume = ConfigDict()
    cfg.default_hooks.resume.setdefault('type', 'mmvmamba.ResumeHook')
    return cfg.default_hooks.resume


def _merge_options(cfg: Config, options: dict[str, Any]) -> None:
    parameters = inspect.signature(FlexibleRunner).parameters.keys() - {'cfg'}
    allowed = sorted({*cfg, *parameters, *_TOOL_KEYS})
    for key in options:
        top = key.split('.')[0]
        if top not in allowed:
            raise UserError(
                f'--cfg-options {key}: the config has no {top!r}{did_you_mean(top, allowed)}'
            )
        if key.startswith('default_hooks.resume.'):
            _add_resume_hook(cfg)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f'--cfg-options {sorted(options)} do not match the config: {error}'
        ) from error


def _set_classification_loaders(cfg: Config) -> None:
    """Set the options of data loaders that mmpretrain's own tools set."""
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(loader):
            cfg[loader].setdefault('pin_memory', not runs_on_cpu())
            cfg[loader].setdefault('collate_fn', dict(type='default_collate'))
            cfg[loader].setdefault('persistent_workers', cfg[loader].get('num_workers', 0) > 0)
