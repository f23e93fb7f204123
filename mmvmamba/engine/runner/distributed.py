"""Distributed runs without a GPU, where MMEngine assumes CUDA."""

from __future__ import annotations

import copy
import datetime
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from mmvmamba.engine.errors import UserError

#: The variables of torch.distributed under the names of launchers other than torchrun.
_VARIABLES = {
    'slurm': {'RANK': 'SLURM_PROCID', 'WORLD_SIZE': 'SLURM_NTASKS', 'LOCAL_RANK': 'SLURM_LOCALID'},
    'mpi': {
        'RANK': 'OMPI_COMM_WORLD_RANK',
        'WORLD_SIZE': 'OMPI_COMM_WORLD_SIZE',
        'LOCAL_RANK': 'OMPI_COMM_WORLD_LOCAL_RANK',
    },
}
#: FSDP's 'full' without offloading. Tensors that are already on the CPU would not be copied:
#: PyTorch would crash, and all states of the optimizer would share one buffer.
_FULL_STATE_ON_CPU = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
    optim_state_dict_config=dict(
        type='FullOptimStateDictConfig', rank0_only=True, offload_to_cpu=False
    ),
)
_REQUIRED = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def init_cpu_process_group(launcher: str, timeout: float | None = None) -> None:
    """Start a gloo group from the environment of 'pytorch' (torchrun), 'slurm' or 'mpi'.

    Raises:
        UserError: If the launcher did not set its variables.
    """
    os.environ.update(_launcher_variables(launcher, os.environ))
    missing = [name for name in _REQUIRED if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs the environment variables {missing}: start the tool '
            f'with {dict(pytorch="torchrun", slurm="srun", mpi="mpirun")[launcher]}'
        )
    limit = {} if timeout is None else {'timeout': datetime.timedelta(seconds=timeout)}
    dist.init_process_group('gloo', **limit)


def runs_on_cpu() -> bool:
    """Return True if MMEngine puts the model on the CPU."""
    return get_device() == 'cpu' and not torch.cuda.is_available()


def cpu_model_wrapper(cfg: Mapping[str, Any] | None, find_unused_parameters: bool) -> dict:
    """Return the config of a DistributedDataParallel without a device."""
    if cfg is None:
        cfg = dict(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    return dict(type='MMDistributedDataParallel', device_ids=None) | dict(cfg)


def use_cpu_strategy(cfg: Config) -> None:
    """Start gloo and change the ``strategy`` of a config for processes without a GPU."""
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    init_cpu_process_group(cfg.launcher, dist_cfg.get('timeout'))
    strategy = cfg.setdefault('strategy', ConfigDict(type='DDPStrategy'))
    wrapper = strategy.get('model_wrapper') or {}
    if strategy['type'] == 'DDPStrategy':
        wrapper = cpu_model_wrapper(wrapper or None, cfg.get('find_unused_parameters', False))
        strategy['sync_bn'] = None
    elif strategy['type'].endswith('FSDPStrategy'):
        wrapper = dict(wrapper, device_id='cpu')
        if strategy.get('state_dict_cfg') == 'full':
            strategy['state_dict_cfg'] = copy.deepcopy(_FULL_STATE_ON_CPU)
    strategy['model_wrapper'] = wrapper


def _launcher_variables(launcher: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torch.distributed from those of the launcher."""
    names = _VARIABLES.get(launcher, {})
    found = {name: environ[source] for name, source in names.items() if source in environ}
    if launcher != 'pytorch':
        found['MASTER_PORT'] = environ.get('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in environ and 'SLURM_NODELIST' in environ:
        found['MASTER_ADDR'] = _first_slurm_host(environ['SLURM_NODELIST'])
    return found


def _first_slurm_host(node_list: str) -> str:
    command = ['scontrol', 'show', 'hostnames', node_list]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
