"""Configs of the same form as the authors': MM_VSSM without a scope over a Swin recipe."""

import re

import pytest

from .conftest import CLASSES, DETECTION, SEGMENTATION

BACKBONE = """backbone=dict(
        type='MM_VSSM',
        out_indices=(0, 1, 2, 3),
        pretrained='',
        dims=8,
        depths=(1, 1, 1, 1),
        ssm_d_state=1,
        ssm_dt_rank='auto',
        ssm_ratio=1.0,
        ssm_conv=3,
        ssm_conv_bias=False,
        forward_type='v05_noz',
        mlp_ratio=4.0,
        downsample_version='v3',
        patchembed_version='v2',
        drop_path_rate=0.2,
        norm_layer='ln2d',
    ),"""
DETECTION_BASE = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
SEGMENTATION_BASE = (
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
)


def authors_form(text, base):
    text = re.sub(r"_base_ = '[^']*'", f"_base_ = '{base}'", text)
    text, count = re.subn(r'backbone=dict\(dims=.*\),', BACKBONE, text)
    assert count == 1
    return text.replace('8, 16, 24, 32', '8, 16, 32, 64').replace(
        'in_channels=24', 'in_channels=32'
    )


@pytest.fixture
def detection(data_root, tmp_path):
    text = authors_form(DETECTION, DETECTION_BASE).format(root=str(data_root), classes=CLASSES)
    for loader, step in (('train', 2), ('val', 1)):
        text += f'{loader}_steps = [dict(t) for t in _base_.{loader}_dataloader.dataset.pipeline]\n'
        text += f"{loader}_steps[{step}]['scale'] = (64, 64)\n"
        text += f"{loader}_dataloader['dataset']['pipeline'] = {loader}_steps\n"
    (tmp_path / 'detection.py').write_text(text)
    return tmp_path / 'detection.py'


@pytest.fixture
def segmentation(data_root, tmp_path):
    text = authors_form(SEGMENTATION, SEGMENTATION_BASE).format(root=str(data_root))
    (tmp_path / 'segmentation.py').write_text(text)
    return tmp_path / 'segmentation.py'


@pytest.mark.parametrize(
    ('package', 'name', 'checkpoint', 'metric'),
    [
        ('mmdet', 'detection', 'epoch_1.pth', 'coco/bbox_mAP'),
        pytest.param('mmseg', 'segmentation', 'iter_2.pth', 'mIoU', marks=pytest.mark.slow),
    ],
)
def test_train_and_test(package, name, checkpoint, metric, request, tmp_path, run_here):
    pytest.importorskip(package)
    config = request.getfixturevalue(name)
    work = tmp_path / 'work'
    assert run_here('train.py', config, '--work-dir', work)[0] == 0
    assert run_here('test.py', config, work / checkpoint, '--work-dir', work)[0] == 0
    logs = '\n'.join(path.read_text() for path in work.glob('**/*.log'))
    assert len(re.findall(r'(\d+) of \1 tensors found; missing: none', logs)) == 1
    assert re.search(rf'\(test\) .* {metric}: +\d', logs)


def test_weights_that_do_not_exist(detection, tmp_path, run_here):
    """The authors' code goes on with random weights."""
    options = ('--work-dir', tmp_path / 'work', '--cfg-options', 'model.backbone.pretrained=no.pth')
    status, errors = run_here('train.py', detection, *options)
    assert status == 2
    assert "'no.pth' does not exist" in errors
