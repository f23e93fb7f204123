"""The authors' files of each kind of model."""

import torch

from mmvmamba.models import VMamba
from mmvmamba.nn import VMambaNet

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
VANILLA = dict(THIN, d_state=4, gate='act', mlp_ratio=0.0, stem='patch', downsample='merging')


def random_state(net):
    torch.manual_seed(0)
    return {key: torch.randn_like(value) for key, value in net.state_dict().items()}


def authors_file(arch, kind):
    if kind == 'classifier':
        return {'model': random_state(VMambaNet(arch, num_classes=5))}
    backbone = random_state(VMamba(arch))
    if kind == 'backbone':
        return {'model': backbone}
    state = {f'backbone.{key}': value for key, value in backbone.items()}
    if kind == 'detector':
        meta = {'dataset_meta': {'classes': ('a', 'b')}}
        state['neck.lateral_convs.0.conv.weight'] = torch.randn(4, 8, 1, 1)
    else:
        meta = {'iter': 3}
        state['decode_head.conv_seg.weight'] = torch.randn(3, 8, 1, 1)
    return {'meta': meta, 'state_dict': state}
