import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmvmamba.engine.errors import UserError
from mmvmamba.registry import MODELS, register_config_packages

REPO = Path(__file__).parents[2]
CONFIGS = {
    'mmdet': 'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py',
    'mmseg': 'configs/demo/vmamba-demo_upernet_demo-160x160.py',
}


@pytest.fixture
def run_demo(monkeypatch):
    """Import demo/run_demo.py, and what it imports, as if it was run."""
    monkeypatch.syspath_prepend(REPO / 'demo')
    return importlib.import_module('run_demo')


@pytest.fixture
def draw_predictions(monkeypatch):
    monkeypatch.syspath_prepend(REPO / 'demo')
    return importlib.import_module('draw_predictions')


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    pytest.importorskip('skimage')
    out = tmp_path_factory.mktemp('demo') / 'data'
    script = REPO / 'tools' / 'dataset_converters' / 'make_demo_dataset.py'
    sizes = ['--num-train', '2', '--num-val', '4', '--size', '64']
    subprocess.run([sys.executable, str(script), str(out), *sizes], check=True)
    return out


def load_config(package):
    pytest.importorskip(package)
    register_config_packages()
    return Config.fromfile(REPO / CONFIGS[package])


def build_model(package):
    cfg = load_config(package)
    init_default_scope(package)
    return cfg, MODELS.build(cfg.model)


def make_results(run_demo, **metrics):
    results = {}
    for task in run_demo.TASKS:
        values = {name: metrics.get(name, metric.target) for name, metric in task.metrics.items()}
        results[task.name] = {'metrics': values}
    return results


@pytest.mark.parametrize('package', CONFIGS)
def test_config(package):
    _, model = build_model(package)
    backbone = model.backbone
    assert len(backbone.layers) == 4
    assert sum(p.numel() for p in backbone.parameters()) >= 1_000_000
    maps = backbone(torch.randn(1, 3, 160, 160))
    assert [m.shape[-1] for m in maps] == [40, 20, 10, 5]


def test_configs_agree_with_the_data(data_root):
    annotations = json.loads((data_root / 'annotations' / 'instances_val.json').read_text())
    things = [category['name'] for category in annotations['categories']]
    with Image.open(data_root / 'annotations' / 'val' / '000001.png') as label_map:
        palette = np.reshape(label_map.getpalette(), (-1, 3))[1:].tolist()
    det, seg = (load_config(package) for package in CONFIGS)
    assert list(det.metainfo.classes) == things
    assert list(seg.metainfo.classes) == [*things, 'brick', 'grass', 'gravel', 'space', 'wood']
    assert [list(color) for color in seg.metainfo.palette] == palette[: len(seg.metainfo.classes)]
    assert [list(color) for color in det.metainfo.palette] == palette[: len(things)]
    assert det.model.roi_head.bbox_head.num_classes == len(things)
    assert seg.model.decode_head.num_classes == len(seg.metainfo.classes)


@pytest.mark.parametrize(
    ('gpu', 'kernels', 'expected'),
    [
        (True, {('triton', 'cuda'), ('native', 'cuda')}, ('cuda', 'triton')),
        (True, {('native', 'cuda'), ('native', 'cpu')}, ('cuda', 'native')),
        (True, {('native', 'cpu')}, ('cpu', 'native')),
        (False, {('native', 'cpu')}, ('cpu', 'native')),
        (True, set(), ('cuda', 'auto')),
        (False, set(), ('cpu', 'auto')),
    ],
)
def test_device_and_backend(run_demo, monkeypatch, capsys, gpu, kernels, expected):
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    reasons = {False: 'it cannot', True: None}
    monkeypatch.setattr(
        run_demo, 'why_not', lambda name, op, device: reasons[(name, device.type) in kernels]
    )
    monkeypatch.setattr(run_demo, 'extension_error', lambda: 'it was not built (no compiler)')
    assert run_demo.choose_device() == expected
    assert ('no compiler' in capsys.readouterr().out) is (not kernels)


def test_metrics_are_compared_with_their_targets(run_demo, capsys):
    assert run_demo.compare(make_results(run_demo)) == []
    misses = run_demo.compare(make_results(run_demo, mIoU=0.69, **{'box AP': float('nan')}))
    assert [miss.split(' of ')[0] for miss in misses] == ['box AP', 'mIoU']
    assert 'UperNet      mIoU     0.690 (target 0.70)' in capsys.readouterr().out


def test_metrics_of_the_newest_run(run_demo, tmp_path):
    detection, segmentation = run_demo.TASKS
    for name, values in (
        ('20261128_090000', {'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.2}),
        ('20261128_100000', {'coco/bbox_mAP': 0.512, 'coco/segm_mAP': 0.5}),
    ):
        (tmp_path / name / 'vis_data').mkdir(parents=True)
        (tmp_path / name / f'{name}.json').write_text(json.dumps(values))
        (tmp_path / name / 'vis_data' / 'scalars.json').write_text('{}')
    assert run_demo.read_metrics(detection, tmp_path) == {'box AP': 0.512, 'mask AP': 0.5}
    path = tmp_path / '20261128_110000' / '20261128_110000.json'
    path.parent.mkdir()
    path.write_text(json.dumps({'mIoU': 71.25}))
    assert run_demo.read_metrics(segmentation, tmp_path) == {'mIoU': 0.7125}


@pytest.fixture
def stand_ins(run_demo, tmp_path, monkeypatch):
    """Run the demo in a folder without its tools; return their commands."""
    commands = []

    def run_tool(command, log, device):
        commands.append(command)
        if command[0] == 'tools/train.py':
            folder = Path(command[command.index('--work-dir') + 1])
            folder.mkdir(parents=True)
            (folder / 'last.pth').touch()
            (folder / 'last_checkpoint').write_text('last.pth')
        return 1.5

    monkeypatch.setattr(run_demo, 'run_tool', run_tool)
    monkeypatch.setattr(run_demo, 'draw_predictions', lambda *args: None)
    monkeypatch.setattr(run_demo, 'choose_device', lambda: ('cpu', 'native'))
    monkeypatch.setattr(
        run_demo, 'read_metrics', lambda task, folder: {name: 0.7 for name in task.metrics}
    )
    return commands


def run_main(run_demo, monkeypatch, tmp_path, *options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['run_demo.py', '--work-dir', 'out', *options])
    run_demo.main()


def test_a_run(run_demo, stand_ins, tmp_path, monkeypatch, capsys):
    run_main(run_demo, monkeypatch, tmp_path)
    train = [command for command in stand_ins if command[0] == 'tools/train.py']
    assert [command[1] for command in train] == list(CONFIGS.values())
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert results['passed'] and results['detection']['train_seconds'] == 1.5
    checkpoint = str(tmp_path / 'out' / 'segmentation' / 'train' / 'last.pth')
    assert results['segmentation']['checkpoint'] == checkpoint
    assert results['segmentation']['backbone_parameters'] > 1_000_000
    assert 'mmvmamba' in results['versions']
    assert re.findall(r'^\[(\d)/8\]', capsys.readouterr().out, re.MULTILINE) == list('12345678')


def test_the_models_of_an_earlier_run_are_tested(run_demo, stand_ins, monkeypatch, tmp_path):
    with pytest.raises(UserError, match='last_checkpoint. does not name a checkpoint'):
        run_main(run_demo, monkeypatch, tmp_path, '--skip-training')
    run_main(run_demo, monkeypatch, tmp_path)
    stand_ins.clear()
    run_main(run_demo, monkeypatch, tmp_path, '--skip-training')
    tools = [command[:3] for command in stand_ins if command[0].startswith('tools/t')]
    folders = (tmp_path / 'out' / task.name / 'train' for task in run_demo.TASKS)
    assert tools == [
        ['tools/test.py', config, str(folder / 'last.pth')]
        for config, folder in zip(CONFIGS.values(), folders, strict=True)
    ]


def test_a_missed_target_is_an_error_after_the_results(run_demo, stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_demo, 'read_metrics', lambda task, folder: {name: 0.5 for name in task.metrics}
    )
    with pytest.raises(UserError, match='did not reach its targets: mIoU of UperNet is 0.500'):
        run_main(run_demo, monkeypatch, tmp_path)
    assert not json.loads((tmp_path / 'out' / 'results.json').read_text())['passed']


def test_failing_tool_is_an_error_with_the_end_of_its_output(run_demo, tmp_path):
    log = tmp_path / 'a' / 'output.log'
    with pytest.raises(UserError, match='exit status 3(?s:.*)the reason'):
        run_demo.run_tool(['-c', 'print("the reason"); raise SystemExit(3)'], log, 'cpu')
    assert log.read_text() == 'the reason\n'


def test_progress_is_shown(run_demo, tmp_path, capsys):
    line = '11/21 02:00:00 - mmengine - INFO - Epoch(train) [1][25/50] eta: 0:01:00'
    run_demo.run_tool(['-c', f'print("noise"); print({line!r})'], tmp_path / 'output.log', 'cpu')
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[-1] == 'Epoch(train) [1][25/50] eta: 0:01:00'
    assert 'noise' not in shown


@pytest.mark.parametrize('package', CONFIGS)
def test_enlarged_ground_truth(package, draw_predictions, data_root):
    """Boxes, masks and label maps keep their place in the image."""
    before = demo_dataset(package, data_root)[0]['data_samples']
    image, after = draw_predictions.enlarge(before)
    assert image.shape == (512, 512, 3) and after.ori_shape == (512, 512)
    if package == 'mmseg':
        agree = after.gt_sem_seg.data[:, 4::8, 4::8] == before.gt_sem_seg.data
        assert agree.float().mean() > 0.98
        return
    boxes = torch.as_tensor(before.gt_instances.bboxes.tensor)
    assert torch.equal(after.gt_instances.bboxes, 8 * boxes)
    masks, small = after.gt_instances.masks, before.gt_instances.masks.masks
    assert len(masks) and (masks[:, 4::8, 4::8].numpy() == small).mean() > 0.98


def test_sheet(draw_predictions):
    cells = [np.full((80, 80, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    names = [f'a class with a long name {i}' for i in range(6)]
    metainfo = dict(classes=names, palette=[(0, 200, i) for i in range(6)])
    sheet = draw_predictions.sheet(cells, ['ground truth', 'prediction'] * 2, metainfo)
    side, gap = draw_predictions.CELL, draw_predictions.GAP
    assert sheet.shape[1] == 4 * (side + gap) + gap
    assert 2 * (side + gap) < sheet.shape[0] < 2 * (side + gap) + 200
    for value in (10, 20, 30, 40, 50):
        assert (sheet == value).all(-1).sum() >= side**2  # text has gray pixels too
    assert (sheet[200 : 200 + side, : gap - 1] == 255).all()
    for color in metainfo['palette']:
        assert (sheet == color).all(-1).sum() > 400


def demo_dataset(package, data_root):
    cfg = load_config(package)
    use_data(cfg, data_root)
    init_default_scope(package)
    return DATASETS.build(cfg.test_dataloader.dataset)


def use_data(cfg, data_root):
    cfg.test_dataloader.dataset.data_root = str(data_root)


@pytest.mark.parametrize('package', CONFIGS)
def test_pictures(package, draw_predictions, data_root, tmp_path, monkeypatch):
    cfg, model = build_model(package)
    use_data(cfg, data_root)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    samples = []
    predict = draw_predictions.predict
    monkeypatch.setattr(
        draw_predictions, 'predict', lambda *args: samples.append(predict(*args)) or samples[-1]
    )
    draw_predictions.draw_predictions(cfg, str(tmp_path / 'model.pth'), tmp_path, num_images=2)
    assert sorted(p.name for p in tmp_path.glob('*.png')) == ['000001.png', '000003.png']
    with Image.open(tmp_path / '000001.png') as picture:
        assert picture.size == (2 * 512, 512)
    assert (tmp_path / 'contact_sheet.jpg').stat().st_size > 1000
    for image, sample in samples:  # ground truth and prediction have the size of the drawn image
        assert image.shape == (512, 512, 3)
        if package == 'mmseg':
            assert sample.pred_sem_seg.shape == sample.gt_sem_seg.shape == (512, 512)
        else:
            assert sample.pred_instances.masks.shape[1:] == (512, 512)
            assert sample.gt_instances.masks.shape[1:] == (512, 512)
            assert sample.pred_instances.bboxes.max() > 64


def test_hero(draw_predictions, data_root, tmp_path, monkeypatch, capsys):
    """Both models on the same images, from a run of the demo that was moved."""
    monkeypatch.chdir(tmp_path)
    for name, package in (('detection', 'mmdet'), ('segmentation', 'mmseg')):
        cfg, model = build_model(package)
        use_data(cfg, data_root)
        folder = tmp_path / name / 'train'
        folder.mkdir(parents=True)
        torch.save({'state_dict': model.state_dict()}, folder / 'last.pth')
        (folder / 'last_checkpoint').write_text('/elsewhere/last.pth')
        cfg.dump(tmp_path / f'{name}.py')
    monkeypatch.setattr(draw_predictions, 'DETECTOR', str(tmp_path / 'detection.py'))
    monkeypatch.setattr(draw_predictions, 'SEGMENTOR', str(tmp_path / 'segmentation.py'))
    monkeypatch.setattr('sys.argv', ['draw_predictions.py', '.', '--num-images', '1'])
    draw_predictions.main()
    assert capsys.readouterr().out.endswith(f'{tmp_path / "hero.jpg"}\n')
    with Image.open(tmp_path / 'hero.jpg') as hero:
        assert hero.width == 1600 and hero.height > 400
