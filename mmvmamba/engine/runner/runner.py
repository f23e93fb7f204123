"""MMEngine's runner on a CPU, and with errors that name what is wrong."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmvmamba.engine.checks.channels import check_feature_maps
from mmvmamba.engine.checks.classes import check_head_classes
from mmvmamba.engine.checks.configs import (
    check_annotations,
    check_classes,
    check_coco_file,
    describe_empty,
)
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.hooks.resume_hook import ResumeHook

from .distributed import (
    cpu_model_wrapper,
    init_cpu_process_group,
    runs_on_cpu,
    use_cpu_strategy,
)


class ToolRunnerMixin:
    """What the tools add to a :class:`mmengine.runner.Runner`."""

    def setup_env(self, env_cfg: dict) -> None:
        """Starts gloo before MMEngine would start NCCL, where there is no GPU."""
        if self.distributed and runs_on_cpu() and not is_distributed():
            dist_cfg = env_cfg.get('dist_cfg') or {}
            init_cpu_process_group(self.launcher, dist_cfg.get('timeout'))
        super().setup_env(env_cfg)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Builds a model; a neck or a head that does not fit the backbone is named."""
        built = super().build_model(model)
        if isinstance(model, dict):
            check_feature_maps(model, built)
        return built

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps without a device, and without SyncBN, where there is no GPU."""
        if self.distributed and runs_on_cpu() and not is_model_wrapper(model):
            self.cfg['sync_bn'] = None
            model = revert_sync_batchnorm(model)
            unused = self.cfg.get('find_unused_parameters', False)
            model_wrapper_cfg = cpu_model_wrapper(model_wrapper_cfg, unused)
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        """Registers hooks, without a GPU one in the place of SyncBN, and one for ``compile``."""
        super().register_hooks(default_hooks, custom_hooks)
        if self.cfg.get('compile'):
            self.register_hook(dict(type='mmvmamba.PlainParamGroupsHook'))
        if self.distributed and runs_on_cpu():
            self.register_hook(dict(type='mmvmamba.AverageBatchNormHook'))

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Builds optimizers; one that is not registered is named."""
        if isinstance(optim_wrapper, dict):
            kind = (optim_wrapper.get('optimizer') or {}).get('type')
            if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
                known = sorted(OPTIMIZERS.module_dict)
                raise UserError(f'optimizer {kind!r} is not registered; there are {known}')
        return super().build_optim_wrapper(optim_wrapper)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Builds a data loader; a file that is no annotation file is named."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        try:
            loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        except Exception as error:
            if isinstance(error, TypeError) and 'DataLoader' in str(error):  # DataLoader.__init__()
                raise UserError(
                    f'a data loader cannot be built from the config: {error}'
                ) from error
            check_annotations(dataloader['dataset'])
            # NumPy's words when MMEngine packs the list of no images.
            if isinstance(error, ValueError) and 'need at least one array' in str(error):
                raise UserError(describe_empty(dataloader['dataset'])) from error
            raise
        if hasattr(loader.dataset, '__len__') and len(loader.dataset) == 0:
            raise UserError(describe_empty(dataloader['dataset']))
        check_classes(dataloader['dataset'])
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Builds the loop; a head for fewer classes than the data set has is named."""
        built = super().build_train_loop(loop)
        known = getattr(built.dataloader.dataset, 'metainfo', {})
        # Of a panoptic data set the heads for boxes and masks have the things alone.
        classes = known.get('thing_classes', known.get('classes'))
        if isinstance(self.cfg.get('model'), dict) and isinstance(classes, list | tuple):
            for message in check_head_classes(self.cfg.model, len(classes)):
                self.logger.warning(message)
        return built

    def build_evaluator(self, evaluator: Any) -> Any:
        """Builds an evaluator; a file that is no annotation file is named."""
        try:
            return super().build_evaluator(evaluator)
        except Exception:
            metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
            for metric in (m for m in metrics if isinstance(m, dict)):
                path = metric.get('ann_file')
                if 'Coco' in str(metric.get('type')) and str(path).endswith('.json'):
                    check_coco_file(path)
            raise


class ResumingMixin:
    """What :class:`mmengine.runner.FlexibleRunner` lacks for :class:`ResumeHook`."""

    def load_or_resume(self) -> None:
        """Has the file chosen before; FlexibleRunner calls ``before_run`` when it has loaded."""
        for hook in self.hooks:
            if isinstance(hook, ResumeHook):
                hook.before_run(self)
        super().load_or_resume()


def build_runner(cfg: Config) -> Runner:
    """Builds the runner that a config asks for.

    Args:
        cfg (Config): The whole config; ``runner_type`` names another class than
            :class:`mmengine.runner.Runner`.

    Raises:
        UserError: If ``runner_type`` is not registered, or its strategy does not go with the
            rest.
    """
    name = cfg.get('runner_type', 'Runner')
    base = RUNNERS.get(name)
    if base is None:
        raise UserError(f'runner_type {name!r} is not registered')
    if runs_on_cpu():
        _compile_for_cpu(cfg)
    if issubclass(base, Runner):
        mixin = ToolRunnerMixin
    else:
        mixin = ResumingMixin
        _prepare_strategy(cfg)
    base = type(base.__name__, (mixin, base), {'__module__': base.__module__})
    return base.from_cfg(cfg)


def _compile_for_cpu(cfg: Config) -> None:
    """Switches off, unless the config says otherwise, what fails for images of several sizes.

    Inductor compares the strides of convolutions to lay them out anew, which fails where they are
    symbols (torch 2.12), as in a neck's backward from the second or third size on.
    """
    options = cfg.get('compile')
    if options is True:
        options = {}
    # torch.compile takes a mode or options, and inductor's options only with inductor.
    if not isinstance(options, dict) or options.get('mode') is not None:
        return
    if options.get('backend', 'inductor') == 'inductor':
        own = options.get('options') or {}
        cfg['compile'] = dict(options, options={'layout_optimization': False, **own})


def _prepare_strategy(cfg: Config) -> None:
    """What the mixin does for a Runner, for a runner whose strategy starts and wraps."""
    strategy = (cfg.get('strategy') or {}).get('type', '')
    if strategy.endswith('FSDPStrategy') and (cfg.get('optim_wrapper') or {}).get('clip_grad'):
        raise UserError(
            f'{strategy} does not go with optim_wrapper.clip_grad: each process would clip by the '
            'norm of its own shard; set optim_wrapper.clip_grad=None'
        )
    if cfg.get('launcher', 'none') != 'none':
        if runs_on_cpu() and not is_distributed():
            use_cpu_strategy(cfg)
    elif strategy.endswith(('DDPStrategy', 'FSDPStrategy')):
        raise UserError(
            f'{strategy} needs --launcher: start with tools/dist_train.sh CONFIG GPUS, also for '
            'one GPU'
        )
