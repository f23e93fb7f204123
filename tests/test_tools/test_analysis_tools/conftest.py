"""Weights of a thin network."""

import pytest
import torch

from mmvmamba.nn import VMambaNet


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp('weights') / 'thin.pth'
    net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    torch.save(dict(model=net.state_dict()), path)
    return path
