"""Choice of the averaged statistics; test_distributed.py uses several processes."""

from types import SimpleNamespace

import torch
from torch import nn

from mmvmamba.engine import AverageBatchNormHook
from mmvmamba.engine.hooks import average_batch_norm_hook


def test_running_statistics_alone(monkeypatch):
    calls = []

    def double(buffers, op):
        calls.append(op)
        for buffer in buffers:
            buffer.mul_(2)

    monkeypatch.setattr(average_batch_norm_hook, 'all_reduce_params', double)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AverageBatchNormHook().after_train_iter(SimpleNamespace(model=model), 0)
    assert calls == ['mean']
    for name, value in model.state_dict().items():
        factor = 2 if 'running_' in name else 1
        assert torch.equal(value, factor * before[name])
    AverageBatchNormHook().after_train_iter(SimpleNamespace(model=nn.Linear(1, 1)), 0)
    assert calls == ['mean']
