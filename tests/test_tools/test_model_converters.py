"""The converters run as scripts, on thin models' files written here."""

import hashlib
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmvmamba.checkpoint.convert import convert, kind_of
from mmvmamba.models import VMamba
from mmvmamba.models.loading import read_checkpoint
from mmvmamba.nn import VMambaNet

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
VANILLA = dict(THIN, d_state=4, gate='act', mlp_ratio=0.0, stem='patch', downsample='merging')
CONVERT = 'model_converters/convert_vmamba.py'
PUBLISH = 'model_converters/publish_model.py'
ARCHS = pytest.mark.parametrize('arch', [THIN, VANILLA], ids=['conv', 'vanilla'])


def random_state(net):
    torch.manual_seed(0)
    return {key: torch.randn_like(value) for key, value in net.state_dict().items()}


def files(arch):
    """The authors' files of each kind of model."""
    classifier = random_state(VMambaNet(arch, num_classes=5))
    backbone = random_state(VMamba(arch))
    prefixed = {f'backbone.{key}': value for key, value in backbone.items()}
    return dict(
        backbone={'model': backbone},
        classifier={'model': classifier},
        detector={
            'meta': {'dataset_meta': {'classes': ('a', 'b')}},
            'state_dict': prefixed | {'neck.lateral_convs.0.conv.weight': torch.randn(4, 8, 1, 1)},
        },
        segmentor={
            'meta': {'iter': 3},
            'state_dict': prefixed | {'decode_head.conv_seg.weight': torch.randn(3, 8, 1, 1)},
        },
    )


def assert_same_content(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if name == 'meta':
            assert a[name] == b[name]
            continue
        assert a[name].keys() == b[name].keys()
        for key, value in a[name].items():
            assert value.dtype == b[name][key].dtype
            assert torch.equal(value, b[name][key]), key


@ARCHS
@pytest.mark.parametrize('kind', ['backbone', 'classifier', 'detector', 'segmentor'])
def test_round_trip_is_exact(arch, kind, tmp_path, run_here):
    content = files(arch)[kind]
    torch.save(content, tmp_path / 'a.pth')
    assert run_here(CONVERT, 'a.pth', 'b.pth', '--to', 'mmvmamba', '--for', kind)[0] == 0
    assert run_here(CONVERT, 'b.pth', 'c.pth', '--to', 'authors', '--for', kind)[0] == 0
    assert run_here(CONVERT, 'c.pth', 'd.pth')[0] == 0  # the kind is found
    assert_same_content(read_checkpoint(str(tmp_path / 'c.pth')), content)
    ours = read_checkpoint(str(tmp_path / 'b.pth'))
    assert_same_content(read_checkpoint(str(tmp_path / 'd.pth')), ours)
    assert 'state_dict' in ours


def test_classifier_fits_mmpretrain(tmp_path):
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
    tensors = files(THIN)['classifier']['model']
    backbone = convert(tensors, 'mmvmamba', 'backbone')['state_dict']
    assert not any(key.startswith('classifier') for key in backbone)
    missing = VMamba(THIN).state_dict().keys() - backbone.keys()
    assert all(key.startswith('outnorm') for key in missing)
    detector = convert(tensors, 'mmvmamba', 'detector')
    assert detector['meta'] == {}
    assert detector['state_dict'].keys() == {f'backbone.{key}' for key in backbone}


def test_old_spelling(tmp_path):
    state = random_state(VMambaNet(VANILLA, num_classes=5))
    old = {}
    for key, value in state.items():
        key = key.replace('patch_embed.0', 'patch_embed.proj')
        key = key.replace('patch_embed.2', 'patch_embed.norm').replace('.op.', '.self_attention.')
        key = re.sub(r'(blocks\.\d+)\.norm\.', r'\1.ln_1.', key).removeprefix('classifier.')
        linear = value.dim() == 2 and key.endswith('.weight')
        old['module.' + key] = value[:, :, None, None] if linear else value
    assert kind_of(old) == 'classifier'
    assert_same_content(convert(old, 'authors', 'classifier'), {'model': state})


@pytest.mark.parametrize(
    ('content', 'arguments', 'words'),
    [
        ({'model': {'conv1.weight': torch.zeros(1)}}, [], 'are not those of a VMamba'),
        (files(THIN)['detector'], ['--for', 'classifier'], 'a classifier needs'),
        (None, [], "'a.pth' does not exist"),
        ([1], [], 'holds a list'),
    ],
    ids=['other', 'detector', 'none', 'list'],
)
def test_what_cannot_be_converted(content, arguments, words, tmp_path, run_here):
    if content is not None:
        torch.save(content, tmp_path / 'a.pth')
    status, errors = run_here(CONVERT, 'a.pth', 'b.pth', *arguments)
    assert status == 2
    assert words in errors
    assert not (tmp_path / 'b.pth').exists()


def test_a_file_is_not_overwritten_by_itself(tmp_path, run_here):
    torch.save(files(THIN)['backbone'], tmp_path / 'a.pth')
    before = (tmp_path / 'a.pth').read_bytes()
    status, errors = run_here(CONVERT, 'a.pth', './a.pth')
    assert status == 2
    assert 'dst must be another file than src' in errors
    assert (tmp_path / 'a.pth').read_bytes() == before


def test_unknown_names():
    with pytest.raises(ValueError, match="to must be one of .* but got 'timm'"):
        convert({}, 'timm', 'backbone')
    with pytest.raises(ValueError, match="kind must be one of .* but got 'head'"):
        convert({}, 'authors', 'head')


def test_publish(tmp_path, run_here):
    detector = files(THIN)['detector']
    hub = MessageHub('test_publish')
    hub.update_scalar('train/loss', 1.5)
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    training = {
        **detector,
        'optimizer': optimizer.state_dict(),
        'message_hub': hub.state_dict(),
        'param_schedulers': [{'last_step': 3}],
    }
    whole = torch.randn(1000, 8)
    training['state_dict'] = {**detector['state_dict'], 'bbox_head.weight': whole[:2]}
    torch.save(training, tmp_path / 'epoch_1.pth')
    assert run_here(PUBLISH, 'epoch_1.pth', 'thin.pth')[0] == 0
    (path,) = tmp_path.glob('thin-*.pth')
    assert run_here(PUBLISH, 'epoch_1.pth', 'thin')[0] == 0
    assert list(tmp_path.glob('thin*')) == [path]  # the same content, the same name
    assert path.stem == f'thin-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}'
    new = read_checkpoint(str(path))
    assert_same_content(new, {'meta': detector['meta'], 'state_dict': training['state_dict']})
    size = sum(v.numel() * v.element_size() for v in training['state_dict'].values())
    assert path.stat().st_size < 2 * size + 40_000
    assert not list(tmp_path.glob('*.part'))


def test_publish_of_a_file_of_the_authors(tmp_path, run_here):
    state = files(THIN)['classifier']['model']
    torch.save({'model': state, 'optimizer': {'state': {}}, 'epoch': 3}, tmp_path / 'a.pth')
    assert run_here(PUBLISH, 'a.pth', 'b')[0] == 0
    (path,) = tmp_path.glob('b-*.pth')
    assert_same_content(read_checkpoint(str(path)), {'model': state})
    assert run_here(PUBLISH, 'none.pth', 'b')[0] == 2


def old_names(model):
    """A detector's or segmentor's state by the January 2024 names of the backbone."""
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith('backbone.'):
            key = key.replace('.op.', '.self_attention.')
            key = re.sub(r'(blocks\.\d+)\.norm\.', r'\1.ln_1.', key)
        state[key] = torch.randn_like(value) if value.is_floating_point() else value
    return state


@pytest.mark.parametrize('task', ['mmdet', 'mmseg'])
def test_inferencers_load_old_names(task, request, tmp_path):
    pytest.importorskip(task)
    from mmengine.registry import MODELS, DefaultScope

    name = dict(mmdet='detection_config', mmseg='segmentation_config')[task]
    config = request.getfixturevalue(name)
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(task):
        model = MODELS.build(cfg.model)
    state = old_names(model)
    torch.save({'meta': {}, 'state_dict': state}, tmp_path / 'old.pth')
    inferencer = inferencer_of(task)(str(config), str(tmp_path / 'old.pth'), device='cpu')
    new = inferencer.model.backbone.state_dict()
    assert torch.equal(
        new['layers.2.blocks.0.op.A_logs'],
        state['backbone.layers.2.blocks.0.self_attention.A_logs'],
    )
    assert torch.equal(new['outnorm3.bias'], state['backbone.outnorm3.bias'])
    torch.save(
        {'meta': {}, 'state_dict': {'backbone.conv1.weight': torch.zeros(3)}}, tmp_path / 'x'
    )
    with pytest.raises(ValueError, match=r'0 of \d+ tensors found.*missing: patch_embed'):
        inferencer_of(task)(str(config), str(tmp_path / 'x'), device='cpu')


def inferencer_of(task):
    if task == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer
    from mmseg.apis import MMSegInferencer

    return MMSegInferencer
