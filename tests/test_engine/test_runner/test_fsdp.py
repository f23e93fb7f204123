"""Sharded training: the strategy's files and the wrapping policy."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner.fsdp import FSDPStrategy, vss_block_policy
from mmvmamba.nn import VMambaNet
from mmvmamba.nn.network import VSSBlock


@pytest.fixture
def strategy(monkeypatch):
    """Saves in shards; in place of the training there is a text, and perhaps a full disk."""

    def save(self, filename, error=None):
        Path(filename).write_text('new')
        if error is not None:
            raise error

    monkeypatch.setattr(_FSDPStrategy, 'save_checkpoint', save)
    return object.__new__(FSDPStrategy)


def test_the_checkpoint_of_a_sharded_run_is_whole_or_not_there(strategy, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    path.write_text('old')
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=r"epoch_1\.pth' cannot be written: No space left"):
        strategy.save_checkpoint(str(path), error=error)
    with pytest.raises(KeyboardInterrupt):  # as little as a kill does
        strategy.save_checkpoint(str(path), error=KeyboardInterrupt())
    assert path.read_text() == 'old'
    strategy.save_checkpoint(str(path))
    assert path.read_text() == 'new'
    assert os.listdir(tmp_path) == ['epoch_1.pth']


@pytest.mark.parametrize('settings', ['local', dict(state_dict_type='SHARDED_STATE_DICT')])
def test_the_state_of_each_process_is_not_saved(settings):
    with pytest.raises(
        ValueError, match="state_dict_cfg must be 'full' .*, but got .*(local|SHARDED)"
    ):
        FSDPStrategy(state_dict_cfg=settings)


def test_each_block_is_a_shard():
    with torch.device('meta'):
        net = VMambaNet(dict(dims=(8, 16, 24, 32), depths=(1, 2, 1, 1)))
    shards = [module for module in net.modules() if vss_block_policy(module, False, 0)]
    assert len(shards) == 5
    assert all(isinstance(module, VSSBlock) for module in shards)
    assert all(vss_block_policy(module, True, 0) for module in net.modules())
