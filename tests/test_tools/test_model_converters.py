"""The converters run as scripts, on thin models' files written here."""

import hashlib
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmvmamba.checkpoint.keys import split_state_dict, to_image_classifier
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.models.loading import read_checkpoint
from mmvmamba.nn import VMambaNet, resolve_arch

from ..test_checkpoint.authors_files import THIN, VANILLA, authors_file

CONVERT = 'model_converters/convert_vmamba.py'
PUBLISH = 'model_converters/publish_model.py'
ARCHS = pytest.mark.parametrize('arch', [THIN, VANILLA], ids=['conv', 'vanilla'])


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
    content = authors_file(arch, kind)
    torch.save(content, tmp_path / 'a.pth')
    assert run_here(CONVERT, 'a.pth', 'b.pth', '--to', 'mmvmamba', '--for', kind)[0] == 0
    assert run_here(CONVERT, 'b.pth', 'c.pth', '--to', 'authors', '--for', kind)[0] == 0
    assert run_here(CONVERT, 'c.pth', 'd.pth')[0] == 0  # the kind is found
    assert_same_content(read_checkpoint(str(tmp_path / 'c.pth')), content)
    ours = read_checkpoint(str(tmp_path / 'b.pth'))
    assert_same_content(read_checkpoint(str(tmp_path / 'd.pth')), ours)
    assert 'state_dict' in ours


def test_safetensors_are_converted_and_published(tmp_path, run_here):
    safetensors = pytest.importorskip('safetensors.torch')
    content = authors_file(THIN, 'classifier')
    safetensors.save_file(content['model'], tmp_path / 'a.safetensors')
    assert run_here(CONVERT, 'a.safetensors', 'b.pth', '--to', 'authors')[0] == 0
    assert_same_content(read_checkpoint(str(tmp_path / 'b.pth')), content)
    assert run_here(PUBLISH, 'a.safetensors', 'c.pth')[0] == 0
    (path,) = tmp_path.glob('c-*.pth')
    published = read_checkpoint(str(path))['state_dict']
    assert_same_content({'model': published}, content)


@pytest.mark.parametrize(
    ('content', 'arguments', 'words'),
    [
        ({'model': {'conv1.weight': torch.zeros(1)}}, [], 'do not belong to a VMamba model'),
        (authors_file(THIN, 'detector'), ['--for', 'classifier'], 'a classifier needs'),
        (None, [], "'a.pth' does not exist"),
        ([1], [], 'contains a list'),
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


@pytest.mark.parametrize('arch', ['tiny', 'vanilla_tiny'])
@pytest.mark.parametrize('kind', ['classifier', 'backbone'])
@pytest.mark.parametrize('source', ['classifier', 'detector'])
def test_folder_for_the_hub(arch, kind, source, tmp_path, run_here):
    pytest.importorskip('huggingface_hub')
    content = authors_file(resolve_arch(arch, **THIN), source)
    torch.save(content, tmp_path / 'a.pth')
    status, errors = run_here(CONVERT, 'a.pth', 'new', '--to', 'hf', '--for', kind)
    if (source, kind) == ('detector', 'classifier'):
        assert status == 2 and 'a classifier needs' in errors
        return
    assert status == 0, errors
    names = {path.name for path in (tmp_path / 'new').iterdir()}
    assert names == {'README.md', 'config.json', 'model.safetensors'}
    net = VMambaNet.from_pretrained(tmp_path / 'new')
    assert net.out_indices == (None if kind == 'classifier' else (0, 1, 2, 3))
    given, want = net.state_dict(), split_state_dict(state_dict_of(content))[0]
    norms = {f'outnorm{i}.{name}' for i in range(4) for name in ('weight', 'bias')}
    for key, value in given.items():
        if key in norms and source == 'classifier':
            assert bool((value == (1 if 'weight' in key else 0)).all())
        else:
            assert torch.equal(value, want[key]), key
    card = (tmp_path / 'new' / 'README.md').read_text()
    assert 'Converted from `a.pth`.' in card and 'top-1' not in card and 'license' not in card
    has_norms = kind == 'classifier' or source == 'detector'
    assert ('The file has no output norms' in card) != has_norms


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['classifier', 'backbone'])
def test_released_file_for_the_hub(kind, tmp_path, run_here):
    """A file gets the results and names of a released one only if the user says that it is one."""
    pytest.importorskip('huggingface_hub')
    name = 'vssm1_tiny_0230s_ckpt_epoch_264.pth'
    torch.save({'model': VMambaNet('tiny').state_dict()}, tmp_path / name)
    options = '--to', 'hf', '--for', kind
    assert run_here(CONVERT, name, 'tuned', *options)[0] == 0
    card = (tmp_path / 'tuned' / 'README.md').read_text()
    assert 'license' not in card and 'top-1' not in card and 'by the authors' not in card
    assert VMambaNet.from_pretrained(tmp_path / 'tuned').class_names is None
    assert run_here(CONVERT, name, 'new', *options, '--released')[0] == 0
    card = (tmp_path / 'new' / 'README.md').read_text()
    assert 'license: mit' in card and '82.60%, as reported by the paper' in card
    net = VMambaNet.from_pretrained(tmp_path / 'new')
    if kind == 'classifier':
        assert net.class_names[:2] == ('tench', 'goldfish')
    assert run_here(CONVERT, name, 'other', '--to', 'hf', '--arch', 'tiny_s2l5')[0] == 2


def test_class_names_for_the_hub(tmp_path, run_here):
    pytest.importorskip('huggingface_hub')
    names = tuple('abcde')
    state = to_image_classifier(authors_file(THIN, 'classifier')['model'], 3)
    for classes in (names, names[:4]):
        content = {'meta': {'dataset_meta': {'classes': classes}}, 'state_dict': state}
        torch.save(content, tmp_path / 'a.pth')
        assert run_here(CONVERT, 'a.pth', f'new{len(classes)}', '--to', 'hf')[0] == 0
        net = VMambaNet.from_pretrained(tmp_path / f'new{len(classes)}')
        assert net.class_names == (names if classes == names else None)


@pytest.mark.parametrize(
    ('dst', 'arguments', 'words'),
    [
        ('full', [], "dst must be a new or an empty folder, but 'full' is not"),
        ('full/file', [], "dst must be a new or an empty folder, but 'full/file' is not"),
        ('new', ['--for', 'detector'], '--for must be backbone or classifier with --to hf'),
        ('new', ['--arch', 'base'], 'does not match VMambaNet'),
        ('new', ['--to', 'authors', '--arch', 'tiny'], '--arch requires --to hf'),
        ('new', ['--to', 'authors', '--released'], '--released requires --to hf'),
        ('new', ['--released'], '--released requires a file with the settings of a released Image'),
    ],
    ids=['folder', 'file', 'kind', 'arch', 'to', 'released for authors', 'not released'],
)
def test_folders_that_are_not_written(dst, arguments, words, tmp_path, run_here):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('x')
    torch.save(authors_file(THIN, 'classifier'), tmp_path / 'a.pth')
    status, errors = run_here(CONVERT, 'a.pth', dst, '--to', 'hf', *arguments)
    assert status == 2 and words in errors
    assert not (tmp_path / 'new').exists()
    assert (tmp_path / 'full' / 'file').read_text() == 'x'


def test_a_file_is_not_overwritten_by_itself(tmp_path, run_here):
    torch.save(authors_file(THIN, 'backbone'), tmp_path / 'a.pth')
    before = (tmp_path / 'a.pth').read_bytes()
    status, errors = run_here(CONVERT, 'a.pth', './a.pth')
    assert status == 2
    assert 'dst must differ from src' in errors
    assert (tmp_path / 'a.pth').read_bytes() == before


def test_publish(tmp_path, run_here):
    detector = authors_file(THIN, 'detector')
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
    assert {p.name for p in tmp_path.iterdir()} == {'epoch_1.pth', path.name}


def test_publish_of_a_file_of_the_authors(tmp_path, run_here):
    state = authors_file(THIN, 'classifier')['model']
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
