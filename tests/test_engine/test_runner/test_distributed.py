"""Process groups and wrappers without a GPU; runs of them are in tests/test_tools."""

import datetime
import os
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import distributed

TORCHRUN = dict(
    RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='10.0.0.1', MASTER_PORT='29600'
)
SLURM = dict(SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1', SLURM_NODELIST='node[7-8]')
MPI = dict(OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_LOCAL_RANK='1')
FOUR = dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_PORT='29500')


@pytest.fixture
def start(monkeypatch):
    """Starts a group in an environment; returns the variables and how it was started."""
    calls = []
    monkeypatch.setattr(
        distributed.dist, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs))
    )
    monkeypatch.setattr(
        distributed.subprocess,
        'run',
        lambda command, **kwargs: SimpleNamespace(stdout=f'{command[-1][:4]}7\nnode8\n'),
    )

    def start(launcher, environ, timeout=None):
        monkeypatch.setattr(os, 'environ', dict(environ))
        distributed.init_cpu_process_group(launcher, timeout)
        return {name: os.environ[name] for name in TORCHRUN}, calls[-1]

    return start


@pytest.mark.parametrize(
    ('launcher', 'environ', 'expected'),
    [
        ('pytorch', TORCHRUN, TORCHRUN),
        ('slurm', SLURM, dict(FOUR, MASTER_ADDR='node7')),
        (
            'slurm',
            dict(SLURM, MASTER_ADDR='host', MASTER_PORT='1'),
            dict(FOUR, MASTER_ADDR='host', MASTER_PORT='1'),
        ),
        ('mpi', dict(MPI, MASTER_ADDR='host'), dict(FOUR, MASTER_ADDR='host')),
    ],
)
def test_the_variables_of_a_launcher(start, launcher, environ, expected):
    variables, call = start(launcher, environ)
    assert variables == expected
    assert call == (('gloo',), {})


def test_the_time_limit_of_a_group(start):
    _, call = start('pytorch', TORCHRUN, timeout=90)
    assert call == (('gloo',), dict(timeout=datetime.timedelta(seconds=90)))


@pytest.mark.parametrize(
    ('launcher', 'environ', 'words'),
    [
        ('pytorch', dict(TORCHRUN, RANK=None), r"\['RANK'\]: start the tool with torchrun"),
        ('slurm', {}, r"'RANK', .*'MASTER_ADDR'\]: start the tool with srun"),
        ('mpi', MPI, r"\['MASTER_ADDR'\]: start the tool with mpirun"),
    ],
)
def test_missing_variables(start, launcher, environ, words):
    environ = {name: value for name, value in environ.items() if value is not None}
    with pytest.raises(UserError, match=f'--launcher {launcher} needs .*{words}'):
        start(launcher, environ)


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
def test_strategies(strategy, expected, start, monkeypatch):
    start('pytorch', TORCHRUN)
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
