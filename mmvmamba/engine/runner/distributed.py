"""Distributed runs without a GPU, where MMEngine assumes CUDA, and clearer errors for all runs."""

import contextlib
import datetime
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from torch import nn

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.utils import unwrapped

#: Time in which the other ranks must answer after a collective operation has failed.
ANSWER_TIME = datetime.timedelta(seconds=30)
_GLOO_ERROR = r'gloo/\S+\.cc:\d+\] (.+)'
#: In DistributedDataParallel's error at the step after one that left parameters without gradient.
_UNUSED = r'Parameter indices which did not receive grad for rank \d+: ([\d ]+)'
_SHOWN = 4


def init_cpu_process_group(launcher: str, timeout: float | None = None) -> None:
    """Start a gloo group from the environment of torchrun.

    Raises:
        UserError: If the launcher is another one, or torchrun did not start this process.
    """
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs GPUs; on CPUs, start with torchrun and --launcher '
            'pytorch, for example as srun torchrun ...'
        )
    limit = {} if timeout is None else {'timeout': datetime.timedelta(seconds=timeout)}
    try:
        dist.init_process_group('gloo', **limit)
    except ValueError as error:
        message = str(error)  # names a missing variable, but not one that is not a number
        for name in ('RANK', 'WORLD_SIZE', 'MASTER_PORT'):
            value = os.environ.get(name, '')
            if value and not value.strip().isdecimal():
                message = f'the environment variable {name} must be a number, but got {value!r}'
        raise UserError(f'{message}; start the tool with torchrun') from error


@contextlib.contextmanager
def hanging_ranks_named() -> Iterator[None]:
    """Name the ranks that hang if a collective operation of gloo fails.

    After gloo's timeout the other ranks enter PyTorch's monitored barrier, which reports the
    missing ones. It needs a group of its own, as the connections of the failed operation are
    closed. NCCL has its own monitor; see :func:`monitor_nccl`.

    Raises:
        UserError: If an operation fails; on rank 0 it names the ranks.
    """
    if not dist.is_initialized() or dist.get_backend() != 'gloo' or dist.get_world_size() == 1:
        yield
        return
    processes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(processes, f'process {os.getpid()} on {socket.gethostname()}')
    group = dist.new_group(backend='gloo', timeout=ANSWER_TIME)
    try:
        yield
    except RuntimeError as error:
        reason = re.search(_GLOO_ERROR, str(error))
        if reason is None:
            raise
        cause = _cause(group, processes)
        raise UserError(f'a collective operation failed ({reason[1]}): {cause}') from error
    dist.destroy_process_group(group)


def _cause(group: dist.ProcessGroup, processes: Sequence[str]) -> str:
    """Describe why a collective operation failed, after the ranks have been asked to answer."""
    try:
        dist.monitored_barrier(group, ANSWER_TIME, wait_all_ranks=True)
    except RuntimeError as error:
        ranks = re.search(r'Ranks ([\d, ]+) failed to pass', str(error))
        if ranks:  # on rank 0
            names = ', '.join(f'rank {i} ({processes[int(i)]})' for i in ranks[1].split(', '))
            return (
                f'{names} did not answer within {ANSWER_TIME.seconds} s and hangs; py-spy dump '
                '--pid PROCESS shows where'
            )
        if dist.get_rank() == 0:
            return 'another process has ended; its own message says why'
        return 'see the message of rank 0; if it has none, rank 0 hangs'
    return (
        'all processes answered afterwards, so one of them was slower than the timeout; raise '
        'env_cfg.dist_cfg.timeout'
    )


@contextlib.contextmanager
def unused_parameters_named(runner: Any) -> Iterator[None]:
    """Name the parameters without a gradient if DistributedDataParallel refuses them.

    If neither neck nor heads use a map of the backbone, its output norm gets no gradient.

    Args:
        runner (Runner | FlexibleRunner): The runner, which may build its model in training.

    Raises:
        UserError: If there are such parameters.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(_UNUSED, str(error))
        if found is None:
            raise
        model = unwrapped(runner.model)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        unused = [names[int(index)] for index in found[1].split()]
        more = f' and {len(unused) - _SHOWN} more' if len(unused) > _SHOWN else ''
        raise UserError(
            f'{", ".join(unused[:_SHOWN])}{more} got no gradient in the last step, which '
            f'DistributedDataParallel does not allow; {_remedy(model, unused)}'
        ) from error


def _remedy(model: nn.Module, unused: Sequence[str]) -> str:
    stages = getattr(getattr(model, 'backbone', None), 'out_indices', ())
    used = tuple(i for i in stages if f'backbone.outnorm{i}.weight' not in unused)
    if used in ((), tuple(stages)):
        return 'remove these modules, or set find_unused_parameters=True'
    return (
        f'neck and heads use only some of the maps of model.backbone.out_indices={tuple(stages)}: '
        f'set it to {used}, and adjust their in_channels and in_index to match'
    )


def monitor_nccl() -> None:
    """Make NCCL's watchdog name the ranks that hang, unless the environment says otherwise."""
    os.environ.setdefault('TORCH_NCCL_DESYNC_DEBUG', '1')


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
