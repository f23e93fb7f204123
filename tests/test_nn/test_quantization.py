"""Quantized layers in the place of the network's linear layers."""

import copy

import pytest
import torch
from torch import nn

from mmvmamba.nn import ARCHS, VMambaNet

THIN = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_classes=5)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=ARCHS)
def net(request):
    torch.manual_seed(0)
    return VMambaNet(request.param, **THIN).eval()


@torch.no_grad()
def check(net, quantized):
    want, got = net(IMAGES), quantized(IMAGES)
    assert 0 < (got - want).norm() < 0.05 * want.norm()


@pytest.mark.filterwarnings('ignore:torch.ao.quantization:DeprecationWarning')
@pytest.mark.filterwarnings('ignore:must run observer:UserWarning')
def test_quantize_dynamic(net):
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    check(net, quantized)


def test_torchao(net):
    """The layers keep their type there; their weights are of a subclass of Tensor."""
    quantization = pytest.importorskip('torchao.quantization')
    quantized = copy.deepcopy(net)
    quantization.quantize_(quantized, quantization.Int8DynamicActivationInt8WeightConfig())
    check(net, quantized)
