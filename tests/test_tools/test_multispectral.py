"""The path of docs/multispectral.md, with a thin model, and the other tasks with 12 bands."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.visualization import Visualizer
from PIL import Image

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)

tifffile = pytest.importorskip('tifffile')
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'multispectral.md').read_text()
STATISTICS, CONFIG = re.findall(r'```python\n(.*?)```', PAGE, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r'```bash\n(.*?)```', PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith('python')
]
BANDS, SIZE = 12, (48, 64)
#: Settings of the template, and those of the page's example, on data of this test.
TEMPLATE = {
    'data_root': "'data/bands/'",
    'img_suffix, seg_map_suffix': "'.tif', '.png'",
    'classes': "('water', 'field')",
    'palette': '[[0, 0, 255], [255, 160, 0]]',
    'image_size': '48',
    'max_iters': '2',
    'load_from': "'published.pth'",
}
THIN = [
    'model.backbone.dims=[8,16,24,32]',
    'model.backbone.depths=[1,1,1,1]',
    'model.decode_head.in_channels=[8,16,24,32]',
    'model.decode_head.channels=16',
    'model.auxiliary_head.in_channels=24',
    'model.auxiliary_head.channels=16',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
]


def scene(seed):
    """An image (H, W, 12) of water with a field in it, and its labels.

    The field is bright in the last band, which no picture shows, and a little brighter in red.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(SIZE, np.uint8)
    y, x = rng.integers(4, 16, 2)
    labels[y : y + 24, x : x + 30] = 1
    image = rng.normal(1000, 40, (*SIZE, BANDS))
    image += np.linspace(0, 500, SIZE[1])[None, :, None]  # brighter to the right
    image[..., 11] += 3000.0 * labels
    image[..., 3] += 800.0 * labels
    return image.clip(0, 65535).astype(np.uint16), labels


def annotation_of(labels):
    y, x = np.nonzero(labels)
    left, top, right, bottom = (float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
    box = [left, top, right - left, bottom - top]
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return dict(bbox=box, area=box[2] * box[3], iscrowd=0, segmentation=[polygon])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder that looks like a clone, with images, label maps and a COCO file."""
    folder = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'tools', 'demo'):
        (folder / name).symlink_to(ROOT / name)
    coco = dict(images=[], annotations=[])
    coco['categories'] = [dict(id=1, name='box'), dict(id=2, name='bar')]  # of conftest.py
    for split, count in (('train', 4), ('val', 2)):
        for kind in ('images', 'annotations'):
            (folder / 'data/bands' / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels = scene(10 * count + i)
            path = folder / f'data/bands/images/{split}/{i}.tif'
            tifffile.imwrite(path, image, planarconfig='contig', photometric='minisblack')
            map_path = folder / f'data/bands/annotations/{split}/{i}.png'
            Image.fromarray(labels + 1).save(map_path)  # 0 is "no label"
            if split == 'train':
                coco['images'].append(
                    dict(id=i, file_name=f'{i}.tif', width=SIZE[1], height=SIZE[0])
                )
                coco['annotations'].append(dict(annotation_of(labels), id=i + 1, image_id=i))
                coco['annotations'][-1]['category_id'] = 1 + i % 2
    (folder / 'data/bands/coco.json').write_text(json.dumps(coco))
    template = (ROOT / 'configs/demo/vmamba-t_upernet_custom.py').read_text()
    for name, value in TEMPLATE.items():
        pattern = rf'^{name} = (\(\n.*?^\)|\[\n.*?^\]|[^\n]*)'
        template, found = re.subn(
            pattern, f'{name} = {value}', template, count=1, flags=re.MULTILINE | re.DOTALL
        )
        assert found, name
    (folder / 'my_data.py').write_text(template)
    (folder / 'my_bands.py').write_text(CONFIG)
    return folder


@pytest.fixture
def run(data, monkeypatch, capfd):
    """Run a script of the repository in this process as if in a new one; return its output."""
    monkeypatch.chdir(data)

    def run(*arguments, code=0):
        for cls in (DefaultScope, MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
            cls._instance_dict.clear()
        mmcv.use_backend('cv2')
        script = Path(arguments[0]).resolve()
        monkeypatch.setattr(sys, 'argv', [str(argument) for argument in arguments])
        monkeypatch.syspath_prepend(str(script.parent))
        monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        monkeypatch.setattr(mmengine_checkpoint, 'print_log', mmengine_checkpoint.print_log)
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as stop:
            out = ''.join(capfd.readouterr())
            assert (stop.code or 0) == code, out[-3000:]
            return out
        return ''.join(capfd.readouterr())

    yield run
    mmcv.use_backend('cv2')


def build(path, **changes):
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(changes)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def rgb(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB'), dtype=float)


def test_statistics_of_the_page(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    names = {}
    exec(STATISTICS, names)
    images = [tifffile.imread(p) for p in sorted((data / 'data/bands/images/train').iterdir())]
    pixels = np.concatenate([image.reshape(-1, BANDS) for image in images]).astype(np.longdouble)
    np.testing.assert_allclose(names['mean'], pixels.mean(0).astype(float), rtol=1e-10)
    np.testing.assert_allclose(names['std'], pixels.std(0).astype(float), rtol=1e-10)
    assert all(len(json.loads(line)) == BANDS for line in capsys.readouterr().out.splitlines())


def test_the_path(data, run):
    """Check, train from weights for three channels, test with pictures, predict and export."""
    check, train, test, predict, export = (command[1:] for command in COMMANDS)
    settings = dict(option.split('=') for option in THIN if option.startswith('model.'))
    settings = {key: eval(value) for key, value in settings.items()}
    published = build(data / 'my_data.py', **settings).state_dict()
    torch.save({'state_dict': published}, data / 'published.pth')
    thin = ['--cfg-options', *THIN]

    assert 'no errors; up to 64 images' in run(*check)

    draw = ['default_hooks.visualization.draw=True', 'default_hooks.visualization.interval=1']
    run(*train, *thin, *draw)
    work_dir = data / train[-1]
    log = next(work_dir.glob('*/*.log')).read_text()
    name = 'backbone.patch_embed.0.weight'
    assert f'published.pth: {name} adapted from 3 to 12 image channels' in log
    assert list(work_dir.glob('*/vis_data/vis_image/val_*.png'))
    trained = torch.load(work_dir / 'iter_2.pth', weights_only=False)['state_dict'][name]
    want = published[name].repeat(1, 4, 1, 1) / 4
    assert torch.nn.functional.cosine_similarity(trained.flatten(), want.flatten(), 0) > 0.99

    last = str(work_dir / 'iter_2.pth')
    test[2] = predict[3] = export[2] = last
    run(*test, *thin)
    pictures = sorted((data / test[-1]).rglob('*.png'))
    assert len(pictures) == 2
    for picture in pictures:  # ground truth beside the prediction
        assert rgb(picture).shape == (10 * SIZE[0], 20 * SIZE[1], 3)

    out = run(*predict, *thin)
    assert 'wrote 2 images to' in out
    pictures = sorted((data / predict[-1] / 'vis').iterdir())
    assert [p.name for p in pictures] == ['0.png', '1.png']
    assert rgb(pictures[0]).shape == (10 * SIZE[0], 10 * SIZE[1], 3)

    assert export.pop() == '--check'  # which takes half a minute
    run(*export, '--shape', *map(str, SIZE), *thin)
    check_exported_file(data, last, export[-1], settings)

    # A test or a prediction with weights for another number of channels would be meaningless.
    words = r'patch_embed\.0\.weight \(4, 3, 3, 3\) instead of \(4, 12, 3, 3\)'
    for command in (test, predict):
        refused = [str(data / 'published.pth') if part == last else part for part in command]
        assert re.search(words, run(*refused, *thin, code=2))


def test_several_scales(data, run, tmp_path):
    settings = dict(option.split('=') for option in THIN if option.startswith('model.'))
    settings = {key: eval(value) for key, value in settings.items()}
    state = build(data / 'my_bands.py', **settings).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'weights.pth')
    test = ['tools/test.py', 'my_bands.py', tmp_path / 'weights.pth', '--work-dir', tmp_path]
    assert 'mIoU' in run(*test, '--tta', '--cfg-options', *THIN)


def check_exported_file(folder, checkpoint, path, settings):
    """Compare the labels of the exported file with those of the test, from file to labels."""
    ort = pytest.importorskip('onnxruntime')
    session = ort.InferenceSession(folder / path, providers=['CPUExecutionProvider'])
    image = folder / 'data/bands/images/val/0.tif'
    model = build(folder / 'my_bands.py', **settings).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    cfg = Config.fromfile(folder / 'my_bands.py')
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (cfg.mean, cfg.std))
    normalized = (tifffile.imread(image).transpose(2, 0, 1).astype(float) - mean) / std
    (logits,) = session.run(None, {'images': normalized[None].astype(np.float32)})
    with DefaultScope.overwrite_default_scope('mmseg'):
        steps = Compose([step for step in cfg.test_pipeline if step['type'] != 'LoadAnnotations'])
    (sample,) = model.test_step(pseudo_collate([steps(dict(img_path=str(image)))]))
    got, want = torch.from_numpy(logits)[0], sample.seg_logits.data
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.std()))


def test_a_mean_of_other_channels(data, run):
    config = "_base_ = 'my_bands.py'\nmodel = dict(backbone=dict(in_channels=4))\n"
    (data / 'four.py').write_text(config)
    out = run('tools/train.py', 'four.py', '--work-dir', 'work_dirs/four', code=2)
    assert (
        'model.backbone.in_channels is 4, but the mean of the data preprocessor has 12 values'
        in out
    )
    flexible = ['runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy']
    out = run(
        'tools/train.py',
        'four.py',
        '--work-dir',
        'work_dirs/flexible',
        '--cfg-options',
        *flexible,
        'default_hooks.bad_data.check=None',
        code=2,
    )
    assert (
        'model.backbone.in_channels is 4, but the mean of the data preprocessor has 12 values'
        in out
    )
    out = run('tools/dataset_converters/check_dataset.py', 'four.py', code=2)
    assert 'image is loaded with 12 channels, but the model takes 4 (4 times)' in out


def with_bands(cfg, package, preprocessor, visualizer, data_root):
    """Change the config of another task as the page says."""
    cfg.model.backbone.in_channels = BANDS
    settings = dict(mean=[1000.0] * BANDS, std=[500.0] * BANDS, base=f'{package}.{preprocessor}')
    settings['type'] = 'mmvmamba.MultispectralPreprocessor'
    if package == 'mmdet':
        cfg.model.data_preprocessor.update(settings, bgr_to_rgb=False)
        cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f'{data_root}/coco.json'
    else:
        cfg.data_preprocessor.update(settings, to_rgb=False)
    for stage in ('train', 'val', 'test'):
        dataset = cfg[f'{stage}_dataloader'].dataset
        dataset.data_root = str(data_root)
        dataset.pipeline[0] = dict(type='LoadImageFromFile', imdecode_backend='tifffile')
        if package == 'mmdet':
            dataset.update(ann_file='coco.json', data_prefix=dict(img='images/train/'))
    cfg.visualizer.update(
        type='mmvmamba.MultispectralVisualizer', base=f'{package}.{visualizer}', bands=(3, 2, 1)
    )
    return cfg


@pytest.mark.parametrize(
    ('task', 'settings', 'last'),
    [
        ('detection', ('mmdet', 'DetDataPreprocessor', 'DetLocalVisualizer'), 'epoch_1.pth'),
        (
            'classification',
            ('mmpretrain', 'ClsDataPreprocessor', 'UniversalVisualizer'),
            'epoch_1.pth',
        ),
    ],
)
def test_other_tasks(task, settings, last, data, run, request, tmp_path):
    """Train from weights for three channels, test with pictures and predict."""
    config, root = request.getfixturevalue(f'{task}_config'), data / 'data/bands'
    torch.save({'state_dict': build(config).state_dict()}, tmp_path / 'published.pth')
    if task == 'classification':
        root = tmp_path / 'crops'
        for i, name in enumerate(('dark', 'light', 'dark', 'light')):
            (root / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / name / f'{i}.tif', scene(i)[0], planarconfig='contig')
    cfg = with_bands(Config.fromfile(config), *settings, root)
    cfg.load_from = str(tmp_path / 'published.pth')
    cfg.dump(tmp_path / 'config.py')

    run('tools/train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'backbone.patch_embed.0.weight adapted from 3 to 12 image channels' in log
    trained = tmp_path / 'work' / last
    run('tools/test.py', tmp_path / 'config.py', trained, '--show-dir', tmp_path / 'shown')
    assert len(list((tmp_path / 'shown').glob('*.png'))) == 4
    images = data / 'data/bands/images/val'
    run('demo/inference.py', images, tmp_path / 'config.py', trained, '--out-dir', tmp_path)
    pictures = sorted((tmp_path / 'vis').iterdir())
    assert [p.name for p in pictures] == ['0.png', '1.png']
    if task == 'classification':  # a field is bright in band 3, which is drawn as red
        for i, picture in enumerate(pictures):
            small = rgb(picture)[-10 * SIZE[0] :][5::10, 5::10]
            field = small[scene(20 + i)[1] == 1]
            assert (field[:, 0] > field[:, 1:].max(axis=1)).mean() > 0.8
