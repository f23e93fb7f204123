"""Results in the tables of configs/vmamba, and architectures recognized by their tensors."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from mmvmamba.checkpoint.released import RELEASED_URLS
from mmvmamba.hub import REPORTED, arch_of
from mmvmamba.nn import ARCHS, VMambaNet

from ..naming_schemes import convolution_weights, january_names, one_file_names

README = Path(__file__).parents[2] / 'configs/vmamba/README.md'
SCHEMES = [dict, january_names, one_file_names, convolution_weights]


def test_results_are_those_of_the_table():
    rows = re.findall(
        r'^\| \S+.* \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \| .*\(.*releases/download/(\S+)\) \|$',
        README.read_text(),
        re.MULTILINE,
    )
    table = {file: (float(top1), float(gflops)) for gflops, top1, file in rows}
    files = {
        RELEASED_URLS[arch].partition('download/')[2]: dataclasses.astuple(r)
        for arch, r in REPORTED.items()
    }
    assert len(table) == 9 and files == table


@pytest.mark.parametrize('name', REPORTED)
def test_released_architectures(name):
    with torch.device('meta'):
        state = VMambaNet(name).state_dict()
    assert arch_of(state) == ARCHS[name]


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('name', ['tiny', 'vanilla_tiny'])
def test_schemes_channels_and_sizes(name, scheme):
    sizes = dict(dims=(8, 16, 24), depths=(1, 3, 1))
    arch = dataclasses.replace(ARCHS[name], **sizes)
    net = VMambaNet(arch, in_channels=5, num_classes=3)
    assert arch_of(scheme(net.state_dict())) == arch
    backbone = VMambaNet(arch, out_indices=(1,))
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    assert arch_of({**state, 'neck.conv.weight': torch.zeros(1)}) == arch


@pytest.mark.parametrize(
    'tensors',
    [
        {},
        {'conv1.weight': torch.zeros(3)},
        {'layers.0.blocks.0.norm.weight': torch.zeros(())},
        {'layers.0.blocks.0.norm.weight': torch.zeros(1)},
        {'layers.0.blocks.0.norm.weight': torch.zeros(0)},
        {f'layers.{i}.blocks.{2 * i}.norm.weight': torch.zeros(8) for i in range(4)},
        VMambaNet('tiny', dims=(8, 16), depths=(1, 1), mlp_ratio=2.0).state_dict(),
    ],
    ids=['none', 'other', 'scalar', 'one', 'empty', 'gaps', 'mlp'],
)
def test_others_are_refused(tensors):
    with pytest.raises(ValueError, match='must have the names and shapes of a released arch'):
        arch_of(tensors)
