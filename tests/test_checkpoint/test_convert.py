"""Conversion between the files of the authors and those of this package."""

import pytest
import torch

from mmvmamba.checkpoint.convert import convert, kind_of, strip_checkpoint, to_bytes
from mmvmamba.models import VMamba
from mmvmamba.nn import VMambaNet

from ..naming_schemes import convolution_weights, january_names
from .authors_files import THIN, VANILLA, authors_file, random_state


@pytest.mark.parametrize('kind', ['backbone', 'classifier', 'detector', 'segmentor'])
def test_kinds(kind):
    (tensors,) = (v for k, v in authors_file(THIN, kind).items() if k != 'meta')
    assert kind_of(tensors) == kind
    (tensors,) = (v for k, v in convert(tensors, 'mmvmamba', kind).items() if k != 'meta')
    assert kind_of(tensors) == kind


def test_classifier_matches_mmpretrains():
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS

    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmvmamba.VMamba', arch=THIN, out_indices=(3,)),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=32),
        )
    ).eval()
    net = VMambaNet(THIN, num_classes=5).eval()
    net.load_state_dict(random_state(net))
    new = convert(net.state_dict(), 'mmvmamba', 'classifier')
    model.load_state_dict(new['state_dict'], strict=True)
    image = torch.randn(2, 3, 50, 66)
    torch.testing.assert_close(model.head(model.extract_feat(image)), net(image))
    assert kind_of(model.state_dict()) == 'classifier'


def test_backbone_and_detector_of_a_classifier():
    tensors = authors_file(THIN, 'classifier')['model']
    backbone = convert(tensors, 'mmvmamba', 'backbone')['state_dict']
    assert not any(key.startswith('classifier') for key in backbone)
    missing = VMamba(THIN).state_dict().keys() - backbone.keys()
    assert all(key.startswith('outnorm') for key in missing)
    detector = convert(tensors, 'mmvmamba', 'detector')
    assert detector['meta'] == {}
    assert detector['state_dict'].keys() == {f'backbone.{key}' for key in backbone}


def test_older_names():
    state = random_state(VMambaNet(VANILLA, num_classes=5))
    old = {f'module.{k}': v for k, v in convolution_weights(january_names(state)).items()}
    assert not any('.op.' in key or 'classifier' in key for key in old)
    assert kind_of(old) == 'classifier'
    new = convert(old, 'authors', 'classifier')
    assert list(new) == ['model']
    assert list(new['model']) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in new['model'].items())


@pytest.mark.parametrize('to', ['mmvmamba', 'authors'])
@pytest.mark.parametrize('part', ['norm', 'head'])
@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_a_classifier_needs_all_of_its_head(to, part, name):
    tensors = authors_file(THIN, 'classifier')['model']
    del tensors[f'classifier.{part}.{name}']
    with pytest.raises(ValueError, match=rf"a classifier needs \['classifier.{part}.{name}'\]"):
        convert(tensors, to, 'classifier')


def test_unknown_arguments():
    with pytest.raises(ValueError, match="to must be one of .* but got 'timm'"):
        convert({}, 'timm', 'backbone')
    with pytest.raises(ValueError, match="kind must be one of .* but got 'head'"):
        convert({}, 'authors', 'head')


def test_tensors_of_another_network():
    with pytest.raises(ValueError, match=r"\['conv1.weight'\] do not belong to a VMamba model"):
        convert({'conv1.weight': torch.zeros(1)}, 'mmvmamba', 'backbone')


def test_strip_keeps_weights_and_meta():
    whole = torch.randn(1000, 8)
    tensors = {'a': whole[:2].requires_grad_()}
    for content, expected in (
        ({'state_dict': tensors, 'meta': {'iter': 3}, 'optimizer': {}}, {'meta': {'iter': 3}}),
        ({'state_dict': tensors}, {'meta': {}}),
        (tensors, {'meta': {}}),
        ({'model': tensors, 'epoch': 3}, {}),
    ):
        new = strip_checkpoint(content, tensors)
        weights = new.pop('state_dict', None) or new.pop('model')
        assert new == expected
        assert torch.equal(weights['a'], whole[:2]) and not weights['a'].requires_grad
        assert weights['a'].untyped_storage().nbytes() == 2 * 8 * 4
    assert to_bytes(content) == to_bytes(content)


def test_strip_removes_passwords_and_tokens():
    meta = {'iter': 3, 'cfg': "load_from = 'https://user:pa55@host/x.pth?token=pa55'\n"}
    new = strip_checkpoint({'state_dict': {}, 'meta': meta}, {})
    assert new['meta'] == {'iter': 3, 'cfg': "load_from = 'https://host/x.pth?...'\n"}
    assert 'pa55' in meta['cfg']
