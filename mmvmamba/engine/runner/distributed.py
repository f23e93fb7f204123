"""Distributed runs without a GPU, where MMEngine assumes CUDA."""

import datetime
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from mmvmamba.engine.errors import UserError


def init_cpu_process_group(launcher: str, timeout: float | None = None) -> None:
    """Start a gloo group from the environment of torchrun.

    Raises:
        UserError: If the launcher is another one, or torchrun did not start this process.
    """
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs GPUs: on CPUs start with torchrun and --launcher pytorch,'
            ' for example as srun torchrun ...'
        )
    limit = {} if timeout is None else {'timeout': datetime.timedelta(seconds=timeout)}
    try:
        dist.init_process_group('gloo', **limit)
    except ValueError as error:  # names the missing variable
        raise UserError(f'{error}; start the tool with torchrun') from error


def runs_on_cpu() -> bool:
    """Return True if MMEngine puts the model on the CPU."""
    return get_device() == 'cpu'


def cpu_model_wrapper(cfg: Mapping[str, Any] | None, find_unused_parameters: bool) -> dict:
    """Return the config of a DistributedDataParallel without a device."""
    if cfg is None:
        cfg = dict(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    return dict(type='MMDistributedDataParallel', device_ids=None) | dict(cfg)


def use_cpu_strategy(cfg: Config) -> None:
    """Change the ``strategy`` of a config for processes without a GPU."""
    strategy = cfg.setdefault('strategy', ConfigDict(type='DDPStrategy'))
    wrapper = strategy.get('model_wrapper') or {}
    if strategy['type'] == 'DDPStrategy':
        wrapper = cpu_model_wrapper(wrapper or None, cfg.get('find_unused_parameters', False))
        strategy['sync_bn'] = None
    elif strategy['type'].endswith('FSDPStrategy'):
        wrapper = dict(wrapper, device_id='cpu')
        if strategy.get('state_dict_cfg') == 'full':
            # Tensors that are on the CPU already would not be copied by offloading: PyTorch would
            # crash, and all states of the optimizer would share one buffer.
            strategy['state_dict_cfg'] = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
                optim_state_dict_config=dict(
                    type='FullOptimStateDictConfig', rank0_only=True, offload_to_cpu=False
                ),
            )
    strategy['model_wrapper'] = wrapper
