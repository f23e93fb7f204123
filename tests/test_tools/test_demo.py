import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData

from mmvmamba.models import VMamba
from mmvmamba.ops import has_kernel
from mmvmamba.registry import MODELS, register_config_packages

REPO = Path(__file__).parents[2]
CONFIGS = {
    'mmdet': 'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py',
    'mmseg': 'configs/demo/vmamba-demo_upernet_demo-160x160.py',
}
needs_native = pytest.mark.skipif(
    not has_kernel('ss2d_scan', 'cpu'), reason='the native extension is not built'
)


def load_script(name):
    spec = importlib.util.spec_from_file_location(f'demo_{name}', REPO / 'demo' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def run_demo():
    return load_script('run_demo')


@pytest.fixture(scope='module')
def draw_predictions():
    return load_script('draw_predictions')


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


def make_results(run_demo, **figures):
    results = {}
    for task in run_demo.TASKS:
        values = {name: metric.target for name, metric in task.metrics.items()}
        values.update({name: value for name, value in figures.items() if name in values})
        results[task.name] = {
            'figures': values,
            'train': {'seconds': 100.0, 'cpu_seconds': 190.0, 'reused': False},
            'test': {'seconds': 10.0, 'cpu_seconds': 15.0},
        }
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
    manifest = json.loads((data_root / 'manifest.json').read_text())
    names = manifest['things'] + manifest['stuff']
    det, seg = (load_config(package) for package in CONFIGS)
    assert list(det.metainfo.classes) == manifest['things']
    assert list(seg.metainfo.classes) == names
    palette = [tuple(colour) for colour in manifest['palette'][1:]]
    assert [tuple(colour) for colour in seg.metainfo.palette] == palette
    assert [tuple(colour) for colour in det.metainfo.palette] == palette[: len(manifest['things'])]
    assert det.model.roi_head.bbox_head.num_classes == len(manifest['things'])
    assert seg.model.decode_head.num_classes == len(names)


@needs_native
def test_check_backbone(run_demo):
    arch = dict(dims=(32, 64, 128, 256), depths=(1, 1, 2, 1))
    assert run_demo.check_backbone(VMamba(arch), 'cpu') >= run_demo.MIN_PARAMETERS


@needs_native
@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(arch=dict(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))), 'parameters'),
        (dict(arch=dict(dims=(32, 64, 128), depths=(1, 1, 1)), out_indices=(0, 1, 2)), 'stages'),
        (dict(arch=dict(dims=(64, 64, 128, 256), depths=(1,) * 4), backend='reference'), 'native'),
    ],
)
def test_check_backbone_refuses(run_demo, settings, message):
    with pytest.raises(run_demo.DemoError, match=message):
        run_demo.check_backbone(VMamba(**settings), 'cpu')


def test_missing_extension_is_an_error(run_demo, monkeypatch):
    monkeypatch.setattr(run_demo, 'has_kernel', lambda *args: False)
    monkeypatch.setattr(run_demo, 'load_extension', lambda: 'it was not built (no compiler)')
    with pytest.raises(run_demo.DemoError, match='no compiler'):
        run_demo.choose_device()


def test_misses(run_demo):
    assert run_demo.find_misses(make_results(run_demo)) == []
    misses = run_demo.find_misses(make_results(run_demo, mIoU=0.69, **{'box AP': float('nan')}))
    assert [miss.split(' of ')[0] for miss in misses] == ['box AP', 'mIoU']


def test_summary(run_demo):
    text = '\n'.join(run_demo.summarise(make_results(run_demo, mIoU=0.8125)))
    assert 'UperNet      mIoU     0.812 (target 0.70)' in text
    assert 'trained in 100 s, tested in 10 s' in text


def test_metrics_from_the_log(run_demo, tmp_path):
    detection, segmentation = run_demo.TASKS
    path, other = tmp_path / 'a.json', tmp_path / 'b.json'
    other.write_text(json.dumps({'coco/bbox_mAP': 0.3}))
    path.write_text(json.dumps({'coco/bbox_mAP': 0.512, 'coco/segm_mAP': 0.5}))
    metrics = run_demo.read_metrics(detection, [other, path])
    assert metrics == {'box AP': 0.512, 'mask AP': 0.5}
    with pytest.raises(run_demo.DemoError, match='mIoU'):
        run_demo.read_metrics(segmentation, [path])
    path.write_text(json.dumps({'mIoU': 71.25}))
    assert run_demo.read_metrics(segmentation, [path]) == {'mIoU': 0.7125}


def test_training_is_reused_only_if_it_is_intact(run_demo, tmp_path):
    checkpoint = tmp_path / 'epoch_1.pth'
    checkpoint.write_bytes(b'weights')
    record = {'key': 'k', 'checkpoint': checkpoint.name, 'sha256': run_demo.file_digest(checkpoint)}
    assert run_demo.finished_training(tmp_path, 'k') is None
    run_demo.write_json(tmp_path / 'finished.json', record)
    assert run_demo.finished_training(tmp_path, 'k') == record
    assert run_demo.finished_training(tmp_path, 'other config') is None
    checkpoint.write_bytes(b'weigh')
    assert run_demo.finished_training(tmp_path, 'k') is None


def test_source_digest_depends_on_every_source(run_demo, tmp_path):
    names = ('mmvmamba/nn/arch.py', 'csrc/cpu/vec.h', 'tools/train.py', 'setup.py')
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x')
    digests = {run_demo.source_digest(tmp_path)}
    for name in names:
        (tmp_path / name).write_text('y')
        digests.add(run_demo.source_digest(tmp_path))
    (tmp_path / 'csrc/cpu/vec.h').rename(tmp_path / 'csrc/cpu/vector.h')
    digests.add(run_demo.source_digest(tmp_path))
    assert len(digests) == len(names) + 2
    (tmp_path / 'mmvmamba/.mim/tools').mkdir(parents=True)
    (tmp_path / 'mmvmamba/.mim/tools/train.py').write_text('x')
    (tmp_path / 'mmvmamba/cached.pyc').write_text('x')
    assert run_demo.source_digest(tmp_path) in digests


def test_training_key_depends_on_config_data_and_sources(
    run_demo, data_root, tmp_path, monkeypatch
):
    detection, segmentation = run_demo.TASKS
    key = run_demo.training_key(detection, data_root)
    assert key == run_demo.training_key(detection, data_root)
    assert key != run_demo.training_key(segmentation, data_root)
    (tmp_path / 'manifest.json').write_text('{}')
    assert key != run_demo.training_key(detection, tmp_path)
    monkeypatch.setattr(run_demo, 'source_digest', lambda: 'other')
    assert key != run_demo.training_key(detection, data_root)


def test_failing_tool_is_an_error_with_the_end_of_its_output(run_demo, tmp_path):
    log = tmp_path / 'a' / 'output.log'
    with pytest.raises(run_demo.DemoError, match='exit status 3(?s:.*)the reason'):
        run_demo.run_tool(['-c', 'print("the reason"); raise SystemExit(3)'], log, 'cpu')
    assert log.read_text() == 'the reason\n'


def test_progress_is_shown(run_demo, tmp_path, caplog):
    line = '11/21 02:00:00 - mmengine - INFO - Epoch(train) [1][25/50] eta: 0:01:00'
    caplog.set_level('INFO')
    run_demo.run_tool(['-c', f'print("noise"); print({line!r})'], tmp_path / 'output.log', 'cpu')
    assert caplog.messages[-1].strip() == 'Epoch(train) [1][25/50] eta: 0:01:00'
    assert not any(message.strip() == 'noise' for message in caplog.messages)


def test_main_fails_with_a_message(run_demo, tmp_path, monkeypatch):
    def fail(args):
        raise run_demo.DemoError('the demo did not reach its targets')

    monkeypatch.setattr(run_demo, 'run_demo', fail)
    with pytest.raises(SystemExit, match='did not reach'):
        run_demo.main(['--work-dir', str(tmp_path)])


def test_enlarge_detection_sample(draw_predictions):
    structures = pytest.importorskip('mmdet.structures')
    masks = pytest.importorskip('mmdet.structures.mask')
    mask = np.zeros((1, 4, 6), np.uint8)
    mask[0, 1:3, 2:4] = 1
    box = torch.tensor([[2.0, 1.0, 4.0, 3.0]])
    gt = InstanceData(bboxes=box, masks=masks.BitmapMasks(mask, 4, 6))
    pred = InstanceData(bboxes=box, masks=torch.from_numpy(mask).bool())
    sample = structures.DetDataSample(gt_instances=gt, pred_instances=pred)
    large = draw_predictions.enlarge_sample(sample, 3)
    for instances in (large.gt_instances, large.pred_instances):
        assert instances.bboxes.tolist() == [[6.0, 3.0, 12.0, 9.0]]
        assert instances.masks.shape == (1, 12, 18)
        assert instances.masks[0, 3:9, 6:12].all() and instances.masks.sum() == 36
    assert sample.gt_instances.bboxes.tolist() == box.tolist()


def test_enlarge_segmentation_sample(draw_predictions):
    structures = pytest.importorskip('mmseg.structures')
    sample = structures.SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor([[[0, 1], [2, 3]]])),
        pred_sem_seg=PixelData(data=torch.tensor([[[3, 2], [1, 0]]])),
    )
    large = draw_predictions.enlarge_sample(sample, 2)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert large.gt_sem_seg.data[0].tolist() == expected
    assert large.pred_sem_seg.data.shape == (1, 4, 4)


def test_contact_sheet(draw_predictions):
    pictures = [np.full((40, 80, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = draw_predictions.contact_sheet(pictures, columns=2, width=400)
    assert sheet.shape[1] == 400
    for value in (10, 20, 30):
        assert (sheet == value).all(-1).sum() > 150 * 75
    assert (sheet[-20:, 220:] == 255).all()


@pytest.mark.parametrize('package', CONFIGS)
def test_pictures(package, draw_predictions, run_demo, data_root, tmp_path):
    cfg, model = build_model(package)
    checkpoint = tmp_path / 'model.pth'
    torch.save({'state_dict': model.state_dict()}, checkpoint)
    task = run_demo.TASKS[list(CONFIGS).index(package)]
    options = run_demo.data_options(task, data_root)
    arguments = [CONFIGS[package], str(checkpoint), str(tmp_path), '--num-images', '2']
    draw_predictions.main(
        [str(REPO / arguments[0]), *arguments[1:], '--score-thr', '0', '--cfg-options', *options]
    )
    assert sorted(p.name for p in tmp_path.glob('*.png')) == ['000001.png', '000003.png']
    assert (tmp_path / 'contact_sheet.jpg').stat().st_size > 1000
