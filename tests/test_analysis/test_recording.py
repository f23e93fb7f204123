"""Recording of scans and attention beside the forward pass."""

import pytest
import torch
from torch import nn

from mmvmamba.analysis.recording import record
from mmvmamba.nn import VMambaNet


@pytest.mark.parametrize('scan', ['cross', 'cascade'])
def test_recording_changes_nothing(scan):
    torch.manual_seed(0)
    net = VMambaNet('tiny', dims=(8, 16), depths=(2, 3), scan=scan, num_classes=4).eval()
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        before = net(image)
    inside = []
    maps = record(net, 1, lambda: inside.append(net(image)))
    assert len(maps) == 3 and maps[0].shape == (4, 6)
    with torch.no_grad():
        # Recorded blocks run layer by layer, with other roundings than the fused ones.
        torch.testing.assert_close(inside[0], before)
        assert torch.equal(before, net(image))
    op = net.layers[1].blocks[0].op
    assert 'core' not in vars(op) and not op._forward_pre_hooks


def test_attention_is_that_of_the_module():
    models = pytest.importorskip('mmpretrain.models')
    torch.manual_seed(0)
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=24)
    net = models.VisionTransformer(arch, img_size=(32, 64)).double()
    net.eval()
    image = torch.rand(1, 3, 32, 64, dtype=torch.float64)
    attn, seen = net.layers[1].attn, {}
    hooks = [
        attn.qkv.register_forward_hook(lambda _, args, out: seen.update(v=out.chunk(3, -1)[2])),
        attn.register_forward_hook(lambda _, args, out: seen.update(out=out)),
    ]
    maps = record(net, 0, lambda: net(image))
    for hook in hooks:
        hook.remove()
    assert len(maps) == 2 and maps[1].shape == (2, 4)
    weights = (maps[1].q @ maps[1].k.mT / 8**0.5).softmax(-1)  # heads of 8 channels
    heads = seen['v'].view(9, 3, 8).transpose(0, 1)
    expected = attn.proj((weights @ heads).transpose(0, 1).reshape(1, 9, 24))
    torch.testing.assert_close(expected, seen['out'])
    torch.testing.assert_close(maps[1].matrix('softmax').sum(-1), torch.ones(9).double())
    picture = maps[1].summed(5, 'softmax')
    torch.testing.assert_close(picture.flatten(), weights.mean(0)[1 + 5, 1:])


def test_refuses_what_has_no_maps():
    net = VMambaNet('tiny', dims=(8, 16), depths=(1, 1)).eval()
    with pytest.raises(ValueError, match=r'stage must be in \[-2, 1\], but got 2'):
        record(net, 2, lambda: None)
    with pytest.raises(ValueError, match='must be a single image, but got 2'):
        record(net, 0, lambda: net(torch.rand(2, 3, 32, 32)))
    with pytest.raises(ValueError, match='1 blocks must run once each, but got 0 runs'):
        record(net, 0, lambda: None)
    with pytest.raises(ValueError, match='Conv2d has neither SS2D blocks nor the attention'):
        record(nn.Conv2d(3, 8, 3), 0, lambda: None)
