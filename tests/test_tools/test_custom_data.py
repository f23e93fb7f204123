"""The walk of docs/custom_data.md, command by command, with smaller models and fewer steps."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)

pytest.importorskip('skimage')
ROOT = Path(__file__).parents[2]
DETECTOR = 'configs/demo/mask-rcnn_vmamba-t_custom-coco.py'
SEGMENTOR = 'configs/demo/vmamba-t_upernet_custom.py'
TWINS = {
    DETECTOR: 'configs/demo/mask-rcnn_swin-t_custom-coco.py',
    SEGMENTOR: 'configs/demo/swin-t_upernet_custom.py',
}
THIN = 'model.backbone.depths=[1,1,1,1]'
LOADERS = [
    option
    for loader in ('train', 'val', 'test')
    for option in (
        f'{loader}_dataloader.num_workers=0',
        f'{loader}_dataloader.persistent_workers=False',
    )
]
SMALL = {
    DETECTOR: [
        *(THIN, 'train_cfg.max_epochs=1'),
        'train_dataloader.dataset.pipeline.2.scale=(96,96)',
        *(f'{loader}_dataloader.dataset.pipeline.1.scale=(96,96)' for loader in ('val', 'test')),
        'model.neck.out_channels=32',
        *('model.rpn_head.in_channels=32', 'model.rpn_head.feat_channels=32'),
        'model.roi_head.bbox_roi_extractor.out_channels=32',
        *('model.roi_head.bbox_head.in_channels=32', 'model.roi_head.bbox_head.fc_out_channels=32'),
        'model.roi_head.mask_roi_extractor.out_channels=32',
        *(
            'model.roi_head.mask_head.in_channels=32',
            'model.roi_head.mask_head.conv_out_channels=32',
        ),
        'model.test_cfg.rcnn.max_per_img=5',
        *LOADERS,
    ],
    SEGMENTOR: [
        *(THIN, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'),
        'default_hooks.checkpoint.interval=2',
        *('model.decode_head.channels=16', 'model.auxiliary_head.channels=16'),
        *LOADERS,
    ],
}


def commands():
    """The lines of the page's shell blocks."""
    text = (ROOT / 'docs' / 'custom_data.md').read_text()
    blocks = re.findall(r'```bash\n(.*?)```', text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def commands_with(word):
    """The commands of the page with a word, without `python`."""
    return [words[1:] for words in commands() if word in words and words[0] == 'python']


def value_of(option, words):
    return words[words.index(option) + 1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder that looks like a clone, with demo data made by the page's first command."""
    folder = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'tools', 'demo'):
        (folder / name).symlink_to(ROOT / name)
    python, script, out = commands()[0]
    assert python == 'python'
    sizes = ['--num-train', '4', '--num-val', '2', '--size', '96']
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(patch, [script, out, *sizes])
    return folder


def run(monkeypatch, arguments):
    """Runs a script of the repository in this process, which is faster, as if in a new one."""
    for cls in (DefaultScope, MessageHub, MMLogger, *Visualizer.__subclasses__()):
        cls._instance_dict.clear()
    script = Path(arguments[0]).resolve()
    monkeypatch.setattr(sys, 'argv', arguments)
    monkeypatch.syspath_prepend(str(script.parent))
    try:
        runpy.run_path(str(script), run_name='__main__')
    except SystemExit as stop:
        assert not stop.code, arguments


def published_weights(config, path):
    """A file as published: the model of the recipe, with its own classes."""
    options = [option.split('=', 1) for option in SMALL[config] if option.startswith('model.')]
    base = re.search(r"_base_ = 'mmvmamba::(.*)'", (ROOT / config).read_text())[1]
    cfg = Config.fromfile(ROOT / 'configs' / base)
    cfg.merge_from_dict({key: eval(value) for key, value in options})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, path)
    return model.state_dict()


@pytest.mark.parametrize(
    ('config', 'last', 'heads', 'per_class'),
    [
        (DETECTOR, 'epoch_1.pth', ('fc_cls', 'fc_reg', 'conv_logits'), '| category   | mAP'),
        pytest.param(
            SEGMENTOR, 'iter_2.pth', ('conv_seg',), '|   Class    |  IoU', marks=pytest.mark.slow
        ),
    ],
)
def test_the_walk(config, last, heads, per_class, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(folder)
    published = published_weights(config, tmp_path / 'published.pth')
    check, train, test, predict = commands_with(config)
    work_dir = Path(value_of('--work-dir', train))
    options = SMALL[config]
    run(monkeypatch, check)
    run(monkeypatch, [*train, '--cfg-options', *options, f'load_from={tmp_path}/published.pth'])

    log = next(work_dir.glob('*/*.log')).read_text()
    (fit,) = (line for line in log.splitlines() if 'published.pth: ' in line)
    assert 'missing: none' in fit
    # One image of 16 of the recipe's: 2 or 4 in a batch.
    batch = Config.fromfile(ROOT / config).batch_size
    assert f'LR is set based on batch size of 16 and the current batch size is {batch}.' in log
    assert per_class in log
    trained = torch.load(work_dir / last, weights_only=False)['state_dict']
    assert trained.keys() == published.keys()
    differing = {k for k in trained if trained[k].shape != published[k].shape}
    assert differing and all(any(head in key for head in heads) for key in differing)
    same = torch.nn.functional.cosine_similarity(
        *(
            s['backbone.layers.0.blocks.0.op.in_proj.weight'].flatten()
            for s in (trained, published)
        ),
        dim=0,
    )
    assert same > 0.999  # what was published, and a few small steps

    # The page names the checkpoint of a whole training.
    assert re.fullmatch(r'(epoch|iter)_\d+\.pth', Path(test[2]).name)
    assert Path(test[2]).parent == Path(predict[3]).parent == work_dir
    checkpoint = str(work_dir / last)
    run(monkeypatch, [*test[:2], checkpoint, *test[3:], '--cfg-options', *options])
    shown = Path(value_of('--show-dir', test)).rglob('*')
    assert len([path for path in shown if path.suffix in ('.jpg', '.png')]) == 2
    predict[3] = checkpoint
    run(monkeypatch, [*predict, '--cfg-options', *options])
    out_dir = Path(value_of('--out-dir', predict))
    pictures = sorted((out_dir / 'vis').iterdir())
    photographs = sorted((folder / 'data/demo/images/val').iterdir())
    assert [p.name for p in pictures] == [p.name for p in photographs]
    for picture, photograph in zip(pictures, photographs, strict=True):
        assert Image.open(photograph).size == (96, 96)
        assert Image.open(picture).size == (480, 480)  # small images are enlarged

    curves, *compare = (c for c in commands_with(str(work_dir)) if 'compare_runs.py' in c[0])
    run(monkeypatch, curves)
    assert Image.open(value_of('--out', curves)).size[0] > 300
    if config == DETECTOR:
        (train,), (compare,) = commands_with(TWINS[config]), compare
        run(monkeypatch, [*train, '--cfg-options', *options, 'load_from=None'])
        capsys.readouterr()
        run(monkeypatch, compare)
        table = capsys.readouterr().out
        runs = [str(work_dir), value_of('--work-dir', train)]
        assert compare[1:3] == runs and f'|  | {runs[0]} | {runs[1]} |' in table
        assert '| coco/cat_precision: last (best) |' in table
        assert Image.open(value_of('--out', compare)).size[0] > 300


@pytest.mark.parametrize('config', [DETECTOR, pytest.param(SEGMENTOR, marks=pytest.mark.slow)])
def test_cpu_variant(config, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    (train,) = commands_with(config.replace('.py', '-cpu.py'))
    train[train.index('--work-dir') + 1] = str(tmp_path)
    small = [option for option in SMALL[config] if 'train_cfg' not in option]
    small += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'load_from=None']
    run(monkeypatch, [*train, '--cfg-options', *small, 'default_hooks.checkpoint.interval=2'])
    assert (tmp_path / 'iter_2.pth').is_file()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Iter(val) [2/2]' in log and 'LR is set based on' not in log


@pytest.mark.parametrize('config', TWINS)
def test_the_twin_differs_in_its_backbone(config):
    ours, twin = (Config.fromfile(ROOT / path).to_dict() for path in (config, TWINS[config]))
    assert ours['model'].pop('backbone')['type'] == 'mmvmamba.VMamba'
    assert twin['model'].pop('backbone')['type'] == 'SwinTransformer'
    file = twin.pop('load_from').rpartition('/')[2]
    assert file != ours.pop('load_from').rpartition('/')[2]
    assert ours == twin
    package = {DETECTOR: 'mmdet', SEGMENTOR: 'mmseg'}[config]
    metafiles = Path(pytest.importorskip(package).__file__).parent / '.mim/configs/swin'
    assert any(file in path.read_text() for path in metafiles.glob('metafile.y*ml'))


@pytest.mark.parametrize('config', TWINS)
def test_the_image_size_reaches_the_pipelines(config, tmp_path):
    """One setting at the top of a template, for training and testing."""
    size = {DETECTOR: '(320, 192)', SEGMENTOR: '64'}[config]
    text, found = re.subn(
        r'^image_size = .*$', f'image_size = {size}', (ROOT / config).read_text(), flags=re.M
    )
    assert found == 1
    (tmp_path / 'config.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'config.py')
    scale = {DETECTOR: (320, 192), SEGMENTOR: (256, 64)}[config]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        scales = [step.scale for step in loader.dataset.pipeline if 'scale' in step]
        assert scales == [scale]
    if config == SEGMENTOR:
        assert cfg.model.data_preprocessor.size == (64, 64)
        crops = [s.crop_size for s in cfg.train_dataloader.dataset.pipeline if 'crop_size' in s]
        assert crops == [(64, 64)]


def test_the_page_names_every_setting():
    text = (ROOT / 'docs' / 'custom_data.md').read_text()
    for config in (DETECTOR, SEGMENTOR):
        cfg = Config.fromfile(ROOT / config)
        top = (ROOT / config).read_text().split('# -----')[0]
        names = set(re.findall(r'^(\w+)(?:, (\w+))? = ', top, flags=re.MULTILINE))
        names = {name for pair in names for name in pair if name and name != '_base_'}
        assert names <= set(cfg)
        for name in names:
            assert f'`{name}`' in text, name


def test_the_page_links_the_weights():
    text = (ROOT / 'docs' / 'custom_data.md').read_text()
    for config in (*TWINS, *TWINS.values()):
        assert f']({Config.fromfile(ROOT / config).load_from})' in text
