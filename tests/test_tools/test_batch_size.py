"""Predictions that do not depend on the batch, or a warning that they do."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmvmamba.models import VMamba

CONFIGS = Path(__file__).parents[2] / 'configs'
TASKS = ('detection', 'segmentation')
WARNING = 'batch contains images of different sizes'


@pytest.fixture
def checkpoint(tmp_path):
    """Save random weights for a config."""

    def make(config):
        cfg = Config.fromfile(config)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        model.init_weights()
        path = tmp_path / 'random.pth'
        torch.save({'state_dict': model.state_dict()}, path)
        return path

    return make


def predictions(run_here, config, checkpoint, folder, batch_size, *options):
    """Return the predictions of tools/test.py, and its log."""
    out = folder / f'{batch_size}.pkl'
    work_dir = folder / f'work_{batch_size}'
    code, err = run_here(
        *('test.py', config, checkpoint, '--out', out, '--work-dir', work_dir, '--cfg-options'),
        *(f'test_dataloader.batch_size={batch_size}', *options),
    )
    assert code == 0, err
    log = next(work_dir.glob('*/*.log')).read_text()
    return pickle.loads(out.read_bytes()), log


@pytest.mark.parametrize('task', TASKS)
def test_images_of_one_size_in_any_batch(task, request, run_here, checkpoint, tmp_path):
    config = request.getfixturevalue(f'{task}_config')
    weights = checkpoint(config)
    one, log = predictions(run_here, config, weights, tmp_path, 1)
    assert WARNING not in log
    several, log = predictions(run_here, config, weights, tmp_path, 3)  # and one alone
    assert WARNING not in log
    for a, b in zip(one, several, strict=True):
        assert a['img_path'] == b['img_path']
        assert_same(task, a, b)


def assert_same(task, a, b):
    if task == 'segmentation':
        assert torch.equal(a['pred_sem_seg']['data'], b['pred_sem_seg']['data'])
        torch.testing.assert_close(
            a['seg_logits']['data'], b['seg_logits']['data'], rtol=1e-4, atol=1e-5
        )
        return
    for name in ('bboxes', 'scores'):
        torch.testing.assert_close(
            a['pred_instances'][name], b['pred_instances'][name], rtol=1e-4, atol=1e-4
        )
    assert torch.equal(a['pred_instances']['labels'], b['pred_instances']['labels'])


@pytest.fixture
def mixed_root(data_root, tmp_path):
    """Data with one narrower image."""
    root = tmp_path / 'mixed'
    shutil.copytree(data_root, root)
    for folder in ('images', 'labels'):
        Image.open(root / folder / '0.png').crop((0, 0, 48, 64)).save(root / folder / '0.png')
    coco = json.loads((root / 'instances.json').read_text())
    coco['images'][0]['width'] = 48
    (root / 'instances.json').write_text(json.dumps(coco))
    return root


def test_a_batch_of_different_sizes_draws_a_warning(
    detection_config, mixed_root, run_here, checkpoint, tmp_path
):
    options = (f'test_dataloader.dataset.data_root={mixed_root}',)
    weights = checkpoint(detection_config)
    for batch_size, number in ((1, 0), (4, 1)):
        _, log = predictions(run_here, detection_config, weights, tmp_path, batch_size, *options)
        lines = [line for line in log.splitlines() if WARNING in line]
        assert len(lines) == number
    assert re.search(
        r'WARNING.* different sizes \(64x48, 64x64\).*test_dataloader.batch_size=1', lines[0]
    )


HEADS = [
    path
    for path in sorted(CONFIGS.glob('*/*.py'))
    if path.parent.name not in ('_base_', 'vmamba', 'comparison', 'demo', 'rotated')
    or 'custom' in path.name
]


@pytest.mark.parametrize('path', HEADS, ids=lambda path: path.stem)
def test_our_configs_predict_one_image_at_a_time(path):
    cfg = Config.fromfile(path)
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1


SEGMENTORS = [path for path in HEADS if Config.fromfile(path).default_scope == 'mmseg']


@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda path: path.stem)
def test_ratios_and_flip_of_segmentors(path):
    cfg = Config.fromfile(path)
    assert cfg.tta_model.type == 'SegTTAModel'
    (augmentation,) = (step for step in cfg.tta_pipeline if step['type'] == 'TestTimeAug')
    scales, flips = augmentation['transforms'][:2]
    assert [step['type'] for step in scales] == ['Resize'] * 6
    assert [step['scale_factor'] for step in scales] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert all(step['keep_ratio'] for step in scales)
    assert [(step['type'], step['prob']) for step in flips] == [
        ('RandomFlip', 0.0),
        ('RandomFlip', 1.0),
    ]


def test_segmentors_of_a_batch_with_different_sizes_say_so(
    segmentation_config, mixed_root, run_here, checkpoint, tmp_path
):
    """mmseg rejects such a batch; the warning before it names the setting."""
    weights = checkpoint(segmentation_config)
    arguments = (
        *('test.py', segmentation_config, weights, '--work-dir', tmp_path / 'work'),
        *('--cfg-options', 'test_dataloader.batch_size=4'),
        f'test_dataloader.dataset.data_root={mixed_root}',
    )
    with pytest.raises(AssertionError, match='same'):
        run_here(*arguments)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert len(re.findall(r'WARNING.* different sizes .*test_dataloader.batch_size=1', log)) == 1


def test_a_larger_image_in_the_batch_changes_a_prediction():
    """The reason for the warning: the scan reads the padding."""
    torch.manual_seed(0)
    model = VMamba(dict(dims=(8, 16), depths=(1, 1)), out_indices=(1,)).eval()
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 32, 32))).float()
    padded = torch.nn.functional.pad(image, (0, 32))
    with torch.no_grad():
        alone, inside = model(image)[0], model(padded)[0][..., :4]
    assert (alone - inside).abs().max() > 1e-3
