"""MMEngine's runners with checks of the config and support for processes without a GPU."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_distributed, master_only
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from mmvmamba.checkpoint.redaction import redact_record, redacted
from mmvmamba.engine import console
from mmvmamba.engine.checks.batch_norm import check_batch_norm, named_batch_norm
from mmvmamba.engine.checks.channels import check_feature_maps, check_image_channels
from mmvmamba.engine.checks.classes import check_dataset_classes, check_head_classes, describe_empty
from mmvmamba.engine.checks.coco import coco_files, log_large_file, read_coco
from mmvmamba.engine.checks.configs import check_stages
from mmvmamba.engine.checks.metrics import check_metrics
from mmvmamba.engine.data.sampling import is_endless
from mmvmamba.engine.errors import UserError, as_user_error, named_build
from mmvmamba.engine.hooks.bad_data_hook import BadDataHook
from mmvmamba.engine.hooks.resume_hook import ResumeHook
from mmvmamba.engine.run_summary import environment, layout
from mmvmamba.engine.utils import load_from, optim_wrappers, resumes, unwrapped
from mmvmamba.engine.work_dir import read_last_checkpoint

from .distributed import (
    cpu_model_wrapper,
    hanging_ranks_named,
    init_cpu_process_group,
    monitor_nccl,
    runs_on_cpu,
    unused_parameters_named,
    use_cpu_strategy,
)

_NO_SPACE = (errno.EDQUOT, errno.ENOSPC, errno.EROFS)


class _LogErrors:
    """Handling of OSErrors of log files, for which Python prints a traceback for each message.

    A full or read-only disk ends a run before its first training step is complete. Any other error
    is written to stderr once, so that a run of days does not end with its log.
    """

    def __init__(self) -> None:
        self.has_trained = False
        self._is_shown = False

    def handle(self, handler: logging.FileHandler, record: logging.LogRecord) -> None:
        """Take the place of ``handleError`` of a handler."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return type(handler).handleError(handler, record)
        message = f'{handler.baseFilename!r} cannot be written: {error.strerror}'
        if error.errno in _NO_SPACE and not self.has_trained:
            raise UserError(f'{message}; free some space, or use another --work-dir') from error
        if not self._is_shown:
            self._is_shown = True
            with contextlib.suppress(OSError):
                sys.stderr.write(f'{message}; the run continues without it\n')


class CommonMixin:
    """Additions of the tools to all runners of MMEngine."""

    #: Whether to keep the config that a training run has saved in the work directory.
    keep_config = False

    @master_only
    def dump_config(self) -> None:
        """Save the config, next to the log if the work directory's is to be kept."""
        name = os.path.basename(self.cfg.filename or '')
        if self.keep_config and name and os.path.exists(os.path.join(self.work_dir, name)):
            self.cfg.dump(os.path.join(self.log_dir, name))
        else:
            super().dump_config()

    def _log_env(self, *args: Any) -> None:
        """Keep the passwords and tokens in the URLs of a config out of the log.

        Of the environment, the console has a summary.
        """
        self.logger.addFilter(redact_record)
        # Handlers outlive the runner, so they must not refer to it.
        self._log_errors = _LogErrors()
        for handler in self.logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = partial(self._log_errors.handle, handler)
        console.attach(self.logger)
        console.log_plain(self.logger, *layout([environment(self.cfg, runs_on_cpu())]))
        super()._log_env(*args)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks."""
        if fn_name == 'after_train_iter':
            self._log_errors.has_trained = True
        super().call_hook(fn_name, **kwargs)

    def train(self) -> nn.Module:
        """Train after a check of all data, before MMEngine builds the datasets."""
        with hanging_ranks_named(), named_batch_norm(), unused_parameters_named(self):
            self._check_data('train', 'val', 'test')
            with self._interrupt_explained():
                return super().train()

    @contextlib.contextmanager
    def _interrupt_explained(self) -> Iterator[None]:
        """Log after Ctrl-C how to continue."""
        try:
            yield
        except KeyboardInterrupt:
            with contextlib.suppress(ValueError):
                last = read_last_checkpoint(self.work_dir)
                after = f'{last} is the last checkpoint; continue with --resume'
                self.logger.warning(f'interrupted: {after if last else "no checkpoint was saved"}')
            raise

    def test(self) -> dict[str, float]:
        """Test after a check of the data."""
        with hanging_ranks_named():
            self._check_data('test')
            return super().test()

    def _check_data(self, *stages: str) -> None:
        for hook in self.hooks:
            if isinstance(hook, BadDataHook):
                hook.check_data(self, *stages)


class ToolRunnerMixin(CommonMixin):
    """Additions of the tools to :class:`mmengine.runner.Runner`."""

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build a model and check that its parts match the channels of the backbone."""
        built = super().build_model(model)
        if isinstance(model, dict):
            check_image_channels(built, _bands(self.cfg))
            check_feature_maps(model, built)
        return built

    def _init_model_weights(self) -> None:
        with as_user_error(ValueError):  # a file of ``init_cfg`` that does not match
            super()._init_model_weights()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap a model; without a GPU, set no device and replace SyncBN by BatchNorm."""
        if self.distributed and runs_on_cpu() and not is_model_wrapper(model):
            self.cfg['sync_bn'] = None
            model = revert_sync_batchnorm(model)
            unused = self.cfg.get('find_unused_parameters', False)
            model_wrapper_cfg = cpu_model_wrapper(model_wrapper_cfg, unused)
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        """Register hooks, including the one for BatchNorm without a GPU."""
        super().register_hooks(default_hooks, custom_hooks)
        if self.distributed and runs_on_cpu():
            self.register_hook(dict(type='mmvmamba.AverageBatchNormHook'))

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build an optimizer wrapper, with parameter groups that ``compile`` can trace."""
        if isinstance(optim_wrapper, dict):
            kind = (optim_wrapper.get('optimizer') or {}).get('type')
            if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
                known = sorted(OPTIMIZERS.module_dict)
                raise UserError(f'optimizer {kind!r} is not registered; it must be one of {known}')
        with as_user_error(ValueError, TypeError):
            built = super().build_optim_wrapper(optim_wrapper)
        # With a paramwise_cfg the groups are MMEngine's ConfigDicts, which torch.compile cannot
        # trace.
        for wrapper in optim_wrappers(built):
            groups = wrapper.optimizer.param_groups
            groups[:] = [dict(group) for group in groups]
        return built

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a data loader and check its annotation files and classes."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        dataset = dataloader.get('dataset')
        for _, path in coco_files(dataset):
            log_large_file(path, 'indexing')
        try:
            loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        except Exception as error:
            for _, path in coco_files(dataset):
                read_coco(path)  # raises the error of a file that is not COCO
            # NumPy's message if MMEngine serializes an empty list.
            if 'need at least one array' in str(error):
                raise UserError(describe_empty(dataset)) from error
            if isinstance(error, TypeError | ValueError):
                raise UserError(f'a data loader cannot be built: {error}') from error
            raise
        if hasattr(loader.dataset, '__len__') and len(loader.dataset) == 0:
            raise UserError(describe_empty(dataset))
        check_dataset_classes(dataset)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop and check that the heads have the classes of the dataset."""
        with named_build('train_cfg'):
            built = super().build_train_loop(loop)
        _check_drop_last(built.dataloader)
        known = getattr(built.dataloader.dataset, 'metainfo', {})
        # The box and mask heads of a panoptic dataset have the things alone.
        classes = known.get('thing_classes', known.get('classes'))
        if isinstance(self.cfg.get('model'), dict) and isinstance(classes, list | tuple):
            for message in check_head_classes(self.cfg.model, len(classes)):
                self.logger.warning(message)
        check_batch_norm(unwrapped(self.model), built.dataloader)
        return built

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop, with errors that name its settings."""
        with named_build('val_cfg'):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop, with errors that name its settings."""
        with named_build('test_cfg'):
            return super().build_test_loop(loop)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build schedules, with errors that name their settings."""
        with named_build('param_scheduler'):
            return super().build_param_scheduler(scheduler)

    def build_evaluator(self, evaluator: Any) -> Any:
        """Build an evaluator and check that its metrics can evaluate the model."""
        built = super().build_evaluator(evaluator)
        check_metrics(getattr(built, 'metrics', ()), unwrapped(self.model))
        return built

    def load_or_resume(self) -> None:
        """Load a checkpoint, and raise a UserError if it does not match the model."""
        with named_checkpoint(self):
            super().load_or_resume()


class FlexibleRunnerMixin(CommonMixin):
    """Additions of the tools to :class:`mmengine.runner.FlexibleRunner`."""

    def load_or_resume(self) -> None:
        """Let ResumeHook choose the file first; FlexibleRunner loads it before ``before_run``."""
        check_image_channels(unwrapped(self.model), _bands(self.cfg))
        with named_checkpoint(self):
            for hook in self.hooks:
                if isinstance(hook, ResumeHook):
                    hook.before_run(self)
            super().load_or_resume()


@contextlib.contextmanager
def named_checkpoint(runner: Runner | FlexibleRunner) -> Iterator[None]:
    """Turn the errors of loading and resuming into a UserError that names the checkpoint."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
    except (LookupError, TypeError, AttributeError) as error:
        if not resumes(runner):
            raise
        name = redacted(str(load_from(runner)))
        raise UserError(
            f'cannot resume from checkpoint {name!r}: {type(error).__name__}: {error}'
        ) from error


def build_runner(cfg: Config, keep_config: bool = False) -> Runner | FlexibleRunner:
    """Build the runner of a config, of the class given by ``runner_type``.

    Args:
        cfg (Config): The config.
        keep_config (bool): Keep a config in the work directory that has the same name, and save
            this one next to the log. Defaults to False.

    Raises:
        UserError: If ``runner_type`` is not registered, or the strategy does not support the
            config.
    """
    check_stages(cfg)
    name = cfg.get('runner_type', 'Runner')
    base = RUNNERS.get(name)
    if base is None:
        known = sorted(RUNNERS.module_dict)
        raise UserError(f'runner_type {name!r} is not registered; it must be one of {known}')
    if cfg.get('compile') and runs_on_cpu():
        from torch._inductor import config as inductor_config  # takes a second

        # Layout optimization compares the strides of convolutions and fails for symbolic ones
        # (torch 2.12), e.g. in the backward of a neck from the second or third image size on.
        inductor_config.layout_optimization = False
    distributed = cfg.get('launcher', 'none') != 'none'
    if distributed and not runs_on_cpu():
        monitor_nccl()
    elif distributed and not is_distributed():
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
        init_cpu_process_group(cfg.launcher, dist_cfg.get('timeout'))
    if issubclass(base, Runner):
        mixin = ToolRunnerMixin
    else:
        mixin = FlexibleRunnerMixin
        _check_strategy(cfg, distributed)
        if distributed and runs_on_cpu():
            use_cpu_strategy(cfg)
    attributes = {'__module__': base.__module__, 'keep_config': keep_config}
    base = type(base.__name__, (mixin, base), attributes)
    with named_build(name):  # of what MMEngine builds without a registry
        return base.from_cfg(cfg)


def _bands(cfg: Config) -> Any:
    visualizer = cfg.get('visualizer')
    return visualizer.get('bands') if isinstance(visualizer, dict) else None


def _check_drop_last(loader: DataLoader) -> None:
    """Check that a process has a whole batch; MMEngine would train for no iteration."""
    batches = getattr(loader, 'batch_sampler', None)
    is_finite = isinstance(batches, BatchSampler) and not is_endless(batches.sampler)
    if is_finite and len(batches) == 0:
        raise UserError(
            'train_dataloader.drop_last=True leaves no batch: a process has '
            f'{len(batches.sampler)} samples, and batch_size is {batches.batch_size}'
        )


def _check_strategy(cfg: Config, distributed: bool) -> None:
    strategy = (cfg.get('strategy') or {}).get('type', '')
    if strategy.endswith('FSDPStrategy') and (cfg.get('optim_wrapper') or {}).get('clip_grad'):
        raise UserError(
            f'{strategy} does not support optim_wrapper.clip_grad: each process would clip by '
            'the norm of its own shard; set optim_wrapper.clip_grad=None'
        )
    if not distributed and strategy.endswith(('DDPStrategy', 'FSDPStrategy')):
        raise UserError(
            f'{strategy} needs --launcher: start with tools/dist_train.sh CONFIG GPUS, even for '
            'one GPU'
        )
