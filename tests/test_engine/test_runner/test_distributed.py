"""Process groups and wrappers without a GPU; runs of them are in tests/test_tools."""

import datetime
import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import distributed

TORCHRUN = dict(
    RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='10.0.0.1', MASTER_PORT='29600'
)


@pytest.fixture
def start(monkeypatch):
    """Starts a group in an environment; returns how it was started."""
    calls = []
    monkeypatch.setattr(
        distributed.dist, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs))
    )

    def start(launcher, timeout=None):
        distributed.init_cpu_process_group(launcher, timeout)
        return calls[-1]

    return start


def test_a_group_of_torchrun(start):
    assert start('pytorch') == (('gloo',), {})


def test_the_time_limit_of_a_group(start):
    assert start('pytorch', timeout=90) == (('gloo',), dict(timeout=datetime.timedelta(seconds=90)))


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_need_gpus(start, launcher):
    words = f'^--launcher {launcher} needs GPUs; .* with torchrun and --launcher pytorch'
    with pytest.raises(UserError, match=words):
        start(launcher)


def test_a_process_that_torchrun_did_not_start(monkeypatch):
    monkeypatch.setattr(os, 'environ', {k: v for k, v in TORCHRUN.items() if k != 'RANK'})
    with pytest.raises(UserError, match='RANK expected, but not set; start the tool with torchrun'):
        distributed.init_cpu_process_group('pytorch')


@pytest.mark.parametrize('name', ['RANK', 'WORLD_SIZE', 'MASTER_PORT'])
def test_a_variable_that_is_not_a_number(name, monkeypatch):
    monkeypatch.setattr(os, 'environ', TORCHRUN | {name: 'hello'})
    words = f"^the environment variable {name} must be a number, but got 'hello'; start the tool"
    with pytest.raises(UserError, match=words):
        distributed.init_cpu_process_group('pytorch')


@pytest.mark.parametrize(
    ('cfg', 'expected'),
    [
        (
            None,
            dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=True,
            ),
        ),
        (dict(type='Own', device_ids=[0]), dict(type='Own', device_ids=[0])),
        (
            dict(bucket_cap_mb=1),
            dict(type='MMDistributedDataParallel', device_ids=None, bucket_cap_mb=1),
        ),
    ],
)
def test_the_wrapper_of_a_model(cfg, expected):
    assert distributed.cpu_model_wrapper(cfg, True) == expected


@pytest.mark.parametrize(
    ('strategy', 'expected'),
    [
        (None, dict(type='DDPStrategy', sync_bn=None)),
        (dict(type='DDPStrategy', sync_bn='torch'), dict(type='DDPStrategy', sync_bn=None)),
        (
            dict(type='mmvmamba.FSDPStrategy', model_wrapper=dict(use_orig_params=True)),
            dict(type='mmvmamba.FSDPStrategy'),
        ),
        (dict(type='FSDPStrategy', state_dict_cfg='full'), dict(type='FSDPStrategy')),
    ],
)
def test_strategies(strategy, expected):
    cfg = Config(dict(launcher='pytorch', **(dict(strategy=strategy) if strategy else {})))
    distributed.use_cpu_strategy(cfg)
    wrapper = cfg.strategy.pop('model_wrapper')
    state = cfg.strategy.pop('state_dict_cfg', None)
    assert cfg.strategy == expected
    if expected['type'] == 'DDPStrategy':
        assert wrapper.device_ids is None
    else:
        assert wrapper.device_id == 'cpu'
        assert wrapper.get('use_orig_params') == (strategy.get('model_wrapper') or {}).get(
            'use_orig_params'
        )
    if 'state_dict_cfg' in (strategy or {}):
        assert state.state_dict_type == 'FULL_STATE_DICT'
        assert state.optim_state_dict_config.offload_to_cpu is False


class Unused(torch.nn.Module):
    """A frozen layer, which DistributedDataParallel does not count, and a neck."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Linear(1, 1).requires_grad_(False)
        self.neck = torch.nn.Linear(1, 1)


def test_unused_parameters_of_other_parts():
    message = 'Parameter indices which did not receive grad for rank 1: 0 1\n In addition, ...'
    words = (
        r'^neck.weight, neck.bias got no gradient .* remove these modules, or set '
        'find_unused_parameters=True$'
    )
    with (
        pytest.raises(UserError, match=words),
        distributed.unused_parameters_named(SimpleNamespace(model=Unused())),
    ):
        raise RuntimeError(message)


def test_other_errors_stay_as_they_are():
    with (
        pytest.raises(RuntimeError, match='^shape$'),
        distributed.unused_parameters_named(SimpleNamespace(model=Unused())),
    ):
        raise RuntimeError('shape')
