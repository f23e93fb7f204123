"""Automatic mixed precision on a CPU, and what it leaves in float32."""

import pytest
import torch
from torch import nn

from mmvmamba.engine import CPUAmpOptimWrapper
from mmvmamba.models import VMamba
from mmvmamba.ops import selective_scan


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        arch = dict(dims=(8, 16, 24, 32), depths=(2, 1, 3, 1))
        self.backbone = VMamba(arch, out_indices=(3,), drop_path_rate=0.0)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[-1]).mean()


def test_steps():
    model, x = Model(), torch.randn(2, 3, 32, 32)
    exact = model(x).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)  # the loss has no minimum
    wrapper = CPUAmpOptimWrapper(optimizer=optimizer)
    before = model.head.weight.detach().clone()
    for step in range(20):
        with wrapper.optim_context(model):
            loss = model(x)
            assert model.head(torch.zeros(1, 32, 1, 1)).dtype == torch.bfloat16
        if step == 0:
            assert loss.item() == pytest.approx(exact, abs=8 * 2.0**-8)
        wrapper.update_params(loss)
    assert not torch.equal(before, model.head.weight)
    assert torch.isfinite(model.head.weight).all()
    assert model(x).item() < exact


def test_a_state_with_the_loss_scale_of_a_gpu():
    """A run in float16 on a GPU can be resumed on a CPU."""
    model = nn.Linear(2, 2)
    state = CPUAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).state_dict()
    state['loss_scaler'] = dict(scale=65536.0)
    other = CPUAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    other.load_state_dict(state)
    assert other.param_groups[0]['lr'] == 0.1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_scan_accumulates_in_float32(dtype):
    """4096 steps of 1/64: a state in half precision would stop growing long before 64."""
    one = torch.ones(1, 1, 4096, dtype=dtype)
    with torch.autocast('cpu', dtype):
        y = selective_scan(one, one / 64, torch.full((1, 1), -1e-6), one, one)
    assert float(y[0, 0, -1]) == pytest.approx(64, rel=0.01)
