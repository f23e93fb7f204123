"""tools/train.py and tools/test.py, and mmdet's own, on tiny data."""

import importlib.util
import json
import os
import pickle
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

ROOT = Path(__file__).parents[2]
TRAIN, TEST = ROOT / 'tools' / 'train.py', ROOT / 'tools' / 'test.py'


@pytest.fixture(scope='session')
def detection_run(detection_config, run_script, tmp_path_factory):
    """The folder of a run of one epoch, and what it wrote."""
    folder = tmp_path_factory.mktemp('detection')
    result = run_script(TRAIN, detection_config, cwd=folder)
    return folder / 'work_dirs' / 'detection', result


@pytest.fixture(scope='session')
def segmentation_run(segmentation_config, run_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp('segmentation')
    result = run_script(
        TRAIN, segmentation_config, '--work-dir', 'out', '--amp', '--auto-scale-lr', cwd=folder
    )
    return folder / 'out', result


# ---- training ----

HOLDER = """
import sys, time
from mmvmamba.engine.work_dir import locked
with locked(sys.argv[1]):
    print('locked', flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_a_work_folder_is_refused(detection_config, run_here, tmp_path):
    command = [sys.executable, '-c', HOLDER, str(tmp_path / 'run')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'locked\n'
        code, err = run_here('train.py', detection_config, '--work-dir', tmp_path / 'run')
        process.kill()
    assert code == 2
    assert f'in use by process {process.pid}' in err
    assert os.listdir(tmp_path / 'run') == ['run.lock']


def assert_readable(result, work_dir):
    """Check that the console is short up to the first step and the log file has everything."""
    before, *_ = re.split(r'(Epoch|Iter)\(train\)', result.stdout, maxsplit=1)
    assert not result.stderr
    assert len(before.splitlines()) <= 60
    titles = [line.split()[0] for line in before.splitlines() if line[:1].isupper()]
    assert titles == ['Environment', 'Data', 'Model', 'Schedule', 'Output']
    log = next(work_dir.glob('*/*.log')).read_text()
    hidden = 'System environment:', 'Config:', 'Hooks will be executed', 'FileClient'
    for text in (*hidden, 'Checkpoints will be saved'):
        assert text in log and text not in result.stdout
    for line in result.stdout.splitlines():
        assert line.rpartition(' - ')[2] in log
    assert log.index('Environment  ') < log.index('System environment:')


def assert_next_commands(result, cwd, monkeypatch):
    """Check that the last lines are complete commands with files that exist."""
    commands = re.findall(r'python (.*(?:test|inference)\.py .*)$', result.stdout, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        script, *arguments = shlex.split(command)
        monkeypatch.setattr(sys, 'argv', [script, *arguments])
        args = runpy.run_path(script)['parse_args']()
        assert (cwd / args.config).is_file() and (cwd / args.checkpoint).is_file()


def test_train_detector(detection_run, monkeypatch):
    work_dir, result = detection_run
    assert (work_dir / 'epoch_1.pth').is_file()
    assert re.search(r'coco/bbox_mAP: .*coco/segm_mAP: ', result.stdout)
    assert_readable(result, work_dir)
    assert 'creating index' in next(work_dir.glob('*/*.log')).read_text()
    for words in (
        'train: 4 images, CocoDataset',
        '2 classes: box, bar',
        'MaskRCNN with VMamba',
        'weights: random',
        '! .* learning rate 0.0001, which is for 16 images',
        'Last +work_dirs/detection/epoch_1.pth',
    ):
        assert re.search(words, result.stdout), words
    assert_next_commands(result, work_dir.parents[1], monkeypatch)


def test_train_segmentor_with_amp_and_scaled_lr(segmentation_run):
    work_dir, result = segmentation_run
    assert (work_dir / 'iter_2.pth').is_file()
    log = result.stdout
    assert 'mIoU' in log
    assert 'CPUAmpOptimWrapper' in log
    assert re.search('! .* learning rate 6e-05 -> 7.5e-06: ', log)
    assert_readable(result, work_dir)
    for text in ('paramwise_options', 'avg_non_ignore', 'reduce_zero_label'):
        assert text in next(work_dir.glob('*/*.log')).read_text() and text not in log
    # 2 images instead of the recipe's 16.
    groups = torch.load(work_dir / 'iter_2.pth', weights_only=False)['optimizer']['param_groups']
    assert [group['initial_lr'] for group in groups] == pytest.approx([6e-5 / 8] * len(groups))


def test_resume(detection_run, detection_config, run_fork):
    work_dir, _ = detection_run
    before = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    log = run_fork(
        'train.py',
        detection_config,
        '--resume',
        '--cfg-options',
        'train_cfg.max_epochs=2',
        'val_cfg=None',
        'val_dataloader=None',
        'val_evaluator=None',
        cwd=work_dir.parents[1],
    )
    assert re.search(r'weights: resumed from \S+epoch_1\.pth at epoch 1, iteration ', log)
    assert 'Epoch(train) [2]' in log
    assert 'Epoch(train) [1]' not in log
    after = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert after['meta']['iter'] == 2 * before['meta']['iter']


def test_resume_from_a_file_without_state(detection_run, detection_config, run_here, tmp_path):
    state = torch.load(detection_run[0] / 'epoch_1.pth', weights_only=False)['state_dict']
    torch.save({'state_dict': state}, tmp_path / 'weights.pth')
    code, err = run_here('train.py', detection_config, '--resume', 'weights.pth')
    assert code == 2
    assert "'weights.pth' contains weights but no training state" in err


def test_resume_from_a_file_of_part_of_the_model(
    detection_run, detection_config, run_here, tmp_path
):
    content = torch.load(detection_run[0] / 'epoch_1.pth', weights_only=False)
    del content['state_dict']['roi_head.mask_head.conv_logits.bias']
    torch.save(content, tmp_path / 'part.pth')
    result = run_here('train.py', detection_config, '--resume', 'part.pth')
    assert_mistake(result, r'does not match MaskRCNN: .*missing: roi_head\.mask_head\.conv_logits')


# ---- testing ----


def test_test_detector(detection_run, detection_config, run_script, tmp_path):
    checkpoint = detection_run[0] / 'epoch_1.pth'
    result = run_script(
        TEST,
        detection_config,
        checkpoint,
        *('--work-dir', 'out', '--show-dir', 'shown', '--out', 'predictions.pkl'),
        cwd=tmp_path,
    )
    assert 'coco/segm_mAP' in result.stdout and not result.stderr
    before, _, after = result.stdout.partition('Epoch(test)')
    assert len(before.splitlines()) <= 30 and f'weights: from {checkpoint}' in before
    for words in (
        'bbox +\\d',
        'segm +\\d',
        'predictions: predictions.pkl',
        'images: shown',
        'log: out',
    ):
        assert re.search(words, after), words
    shown = sorted(path.name for path in (tmp_path / 'shown').glob('*.png'))
    assert shown == ['0.png', '1.png', '2.png', '3.png']
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        predictions = pickle.load(file)
    assert len(predictions) == 4
    assert set(predictions[0]['pred_instances']) >= {'bboxes', 'labels', 'scores', 'masks'}


def test_test_detector_from_safetensors(detection_run, detection_config, run_here, tmp_path):
    """Such a file has weights alone: no run can be resumed from it."""
    safetensors = pytest.importorskip('safetensors.torch')
    state = torch.load(detection_run[0] / 'epoch_1.pth', weights_only=False)['state_dict']
    safetensors.save_file(dict(state), tmp_path / 'x.safetensors')
    assert run_here('test.py', detection_config, 'x.safetensors')[0] == 0
    code, err = run_here('train.py', detection_config, '--resume', 'x.safetensors')
    assert code == 2
    assert 'contains weights but no training state' in err


def test_test_segmentor_with_tta(segmentation_run, segmentation_config, run_fork, tmp_path):
    log = run_fork(
        'test.py',
        segmentation_config,
        segmentation_run[0] / 'iter_2.pth',
        *('--tta', '--out', 'maps', '--show-dir', 'shown', '--work-dir', 'out'),
        cwd=tmp_path,
    )
    assert 'mIoU' in log
    maps = list((tmp_path / 'maps').glob('*.png'))
    assert len(maps) == 4
    assert Image.open(maps[0]).size == (64, 64)
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 4


def test_mask_rcnn_has_no_tta(detection_run, detection_config, run_here):
    code, err = run_here('test.py', detection_config, detection_run[0] / 'epoch_1.pth', '--tta')
    assert code == 2
    assert '--tta merges boxes only' in err


def test_masks_by_another_name_have_no_tta(run_here, tmp_path):
    """RTMDet-Ins has no mask_head; its metric asks for masks."""
    path = tmp_path / 'ins.py'
    path.write_text("_base_ = 'mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py'\n")
    assert_mistake(run_here('test.py', path, 'none.pth', '--tta'), '--tta merges boxes only')


BOXES = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvmamba.VMamba', arch='tiny', depths=(1, 1, 1, 1)),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(bbox_head=dict(num_classes=2, fc_out_channels=16)),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=3)),
)
steps = [dict(t) for t in _base_.test_dataloader.dataset.pipeline]
steps[1]['scale'] = (64, 64)
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root={root!r},
        metainfo=dict(classes=('box', 'bar')),
        ann_file='instances.json',
        data_prefix=dict(img='images/'),
        pipeline=steps,
    ),
)
test_evaluator = dict(ann_file={root!r} + '/instances.json')
"""


def test_detector_of_boxes_with_tta(data_root, run_fork, tmp_path):
    (tmp_path / 'boxes.py').write_text(BOXES.format(root=str(data_root)))
    cfg = Config.fromfile(tmp_path / 'boxes.py')
    init_default_scope('mmdet')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'boxes.pth')
    log = run_fork('test.py', 'boxes.py', 'boxes.pth', '--tta', '--out', 'p.pkl', cwd=tmp_path)
    assert 'coco/bbox_mAP' in log
    assert len(pickle.loads((tmp_path / 'p.pkl').read_bytes())) == 4


# ---- classification ----

CLASSIFIER = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvmamba.VMamba',
        arch=dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=32,
        topk=(1,),
        loss=dict(type='CrossEntropyLoss'),
    ),
)
data_preprocessor = dict(num_classes=2, mean=[120] * 3, std=[60] * 3, to_rgb=True)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(32, 32)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='CustomDataset', data_root={root!r}, pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(**train_dataloader)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
"""


def test_train_and_test_a_classifier(run_script, run_fork, tmp_path):
    for name, color in (('dark', 10), ('light', 240)):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (40, 40), (color,) * 3).save(
                tmp_path / 'data' / name / f'{name}{i}.png'
            )
    (tmp_path / 'cls.py').write_text(CLASSIFIER.format(root=str(tmp_path / 'data')))
    result = run_script(TRAIN, 'cls.py', '--work-dir', 'out', cwd=tmp_path)
    assert_readable(result, tmp_path / 'out')
    log = run_fork(
        'test.py',
        'cls.py',
        'out/epoch_1.pth',
        *('--work-dir', 'out', '--out', 'scores.pkl', '--show-dir', 'shown'),
        cwd=tmp_path,
    )
    assert 'accuracy/top1' in log
    assert len(pickle.loads((tmp_path / 'scores.pkl').read_bytes())) == 4
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 4


# ---- stock tools ----


@pytest.mark.slow
def test_mmdets_own_tools(data_root, run_script, stock_launcher, tmp_path):
    """By path and with our config as it is: nothing imports the package before it is built."""
    tools = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim' / 'tools'
    config = ROOT / 'configs' / 'mask_rcnn' / 'mask-rcnn_vmamba-t_fpn_1x_coco.py'
    options = [
        'model.backbone.dims=(8,16,24,32)',
        'model.backbone.depths=(1,1,1,1)',
        'model.backbone.init_cfg=None',
        'model.neck.in_channels=[8,16,24,32]',
        'model.train_cfg.rpn_proposal.max_per_img=20',
        'model.test_cfg.rpn.max_per_img=20',
        'model.test_cfg.rcnn.max_per_img=2',
        'model.test_cfg.rcnn.score_thr=0.0',
        'model.roi_head.bbox_head.num_classes=2',
        'model.roi_head.mask_head.num_classes=2',
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        f'val_evaluator.ann_file={data_root}/instances.json',
        f'test_evaluator.ann_file={data_root}/instances.json',
    ]
    for loader in ('train', 'val', 'test'):
        options += [
            f'{loader}_dataloader.num_workers=0',
            f'{loader}_dataloader.persistent_workers=False',
            f'{loader}_dataloader.dataset.data_root={data_root}/',
            f'{loader}_dataloader.dataset.ann_file=instances.json',
            f'{loader}_dataloader.dataset.data_prefix.img=images/',
            f'{loader}_dataloader.dataset.metainfo.classes=box,bar',
        ]
    options += [
        f'{loader}_dataloader.dataset.pipeline.1.scale=(64,64)' for loader in ('val', 'test')
    ]
    options = ('--work-dir', 'out', '--cfg-options', *options)
    how = dict(cwd=tmp_path, launcher=stock_launcher)
    run_script(tools / 'train.py', config, *options, **how)
    result = run_script(tools / 'test.py', config, 'out/epoch_1.pth', *options, **how)
    assert 'coco/segm_mAP' in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ('package', 'checkpoint', 'result'),
    [('mmdet', 'epoch_1.pth', 'coco/segm_mAP'), ('mmseg', 'iter_2.pth', 'mIoU')],
)
def test_stock_tools_without_ops_of_mmcv(
    package, checkpoint, result, request, run_script, pure_mmcv, monkeypatch, tmp_path
):
    """Data-loading processes that are spawned import the tool again."""
    names = dict(mmdet='detection_config', mmseg='segmentation_config')
    config = request.getfixturevalue(names[package])
    tools = Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'tools'
    path = filter(None, [str(pure_mmcv), os.environ.get('PYTHONPATH')])
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(path))
    workers = [f'{loader}_dataloader.num_workers=1' for loader in ('train', 'val', 'test')]
    options = ('--cfg-options', 'env_cfg.mp_cfg.mp_start_method=spawn', *workers)
    how = dict(cwd=tmp_path, launcher=('-m', 'mmvmamba.mmcv_ops'))
    run_script(tools / 'train.py', config, '--work-dir', 'out', *options, **how)
    log = run_script(tools / 'test.py', config, f'out/{checkpoint}', *options, **how)
    assert result in log.stdout + log.stderr


# ---- mistakes ----


def assert_mistake(result, *words):
    """Two lines at most: what is wrong and how to see where."""
    code, err = result
    assert code == 2
    # Loggers write to the same stream before.
    assert 'Traceback (most recent call last)' not in err
    message = re.search(r'^t\w+\.py: error: (.*)$', err, flags=re.MULTILINE)
    assert message is not None, err
    for word in words:
        assert re.search(word, message[1]), message[1]


def test_a_count_takes_no_options_of_a_run(run_here, detection_config):
    options = ('--launcher', 'slurm', '--work-dir', 'out', '--local-rank', '1')
    code, err = run_here('analysis_tools/get_flops.py', detection_config, *options)
    assert code == 2
    assert 'unrecognized arguments: ' + ' '.join(options) in err


def test_missing_config(run_here, detection_config):
    near = detection_config.with_name('detectoin.py')
    assert_mistake(run_here('train.py', near), 'detectoin.py', 'did you mean .*detection.py')
    assert_mistake(run_here('test.py', 'no.py', 'x.pth'), "config 'no.py' does not exist")


def test_broken_config(run_here, tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    assert_mistake(run_here('train.py', 'broken.py'), "'broken.py' cannot be read", 'SyntaxError')
    (tmp_path / 'base.py').write_text("_base_ = './nothing.py'\n")
    assert_mistake(run_here('train.py', 'base.py'), 'nothing.py')
    (tmp_path / 'empty.py').write_text('a = 1\n')
    assert_mistake(run_here('train.py', 'empty.py'), "'empty.py' has no model")


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('modle.backbone.arch=tiny', "no 'modle'; did you mean model"),
        ('train_dataloader.dataset.pipeline.99.scale=3', '99'),
        ('model.backbone.arch=huge', 'VMamba cannot be built: arch must be one of.*huge'),
        ('model.backbone.architecture=tiny', 'VMamba cannot be built.*architecture'),
        ('model.backbone.out_indice=[1]', r"\['out_indice'\]; did you mean out_indices"),
        (
            'model.backbone.out_indices=[0,1,2]',
            r'returns 3 map\(s\) with .*, but model.neck.in_channels is',
        ),
        ('train_dataloader.batchsize=3', "DataLoader.*'batchsize'"),
        ('model.type=MaskRNN', 'MaskRNN.*registry'),
        ('model.neck.in_chanels=3', 'FPN cannot be built.*in_chanels'),
        ('train_dataloader.dataset.data_root=nowhere/', r"data_root 'nowhere/' does not exist"),
        ('train_dataloader.dataset.ann_file=no.json', r"ann_file '.*no.json' does not exist"),
        ('val_dataloader.dataset.data_prefix.img=none', r"folder img '.*none' does not exist"),
        ('val_evaluator.ann_file=no.json', r"val_evaluator: ann_file 'no.json' does not exist"),
        ('load_from=no.pth', "checkpoint 'no.pth' does not exist"),
    ],
)
def test_wrong_option(run_here, detection_config, option, words):
    assert_mistake(run_here('train.py', detection_config, '--cfg-options', option), words)


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        (
            'train_dataloader.batch_size=1',
            r'decode_head\.\S+ is a BatchNorm .*; set train_da',
        ),
        ('val_cfg.foo=1', "ValLoop.* cannot be built: .*unexpected keyword argument 'foo'"),
        ('train_cfg.max_iters=2.5', r'cannot be built: `max_iters` should be .* 2\.5'),
        ('val_cfg=None', r"val_evaluator must all be set .*\['val_cfg'\] are None; use --no"),
        ('train_cfg.val_interval=0', 'train_cfg.val_interval must be at least 1, but got 0'),
        (
            'model.backbone.arch=dict(dims=(8,8))',
            r'arch=dict\(.* cannot be parsed; write a',
        ),
        ('val_evaluator.type=CocoMetric', 'CocoMetric is not in the mmseg::metric registry'),
    ],
)
def test_wrong_option_of_a_segmentor(run_here, segmentation_config, option, words):
    result = run_here('train.py', segmentation_config, '--cfg-options', option)
    assert_mistake(result, words)
    assert 'Iter(train)' not in result[1]


@pytest.mark.parametrize(
    ('runner_type', 'words'),
    [
        ('Runner', r'decode_head\.\S+ is a BatchNorm .* the last of the 3 images forms its own'),
        ('FlexibleRunner', 'BatchNorm cannot normalize a single pixel of a single image'),
    ],
)
def test_a_last_batch_of_one_image(run_here, segmentation_config, runner_type, words, tmp_path):
    """Three images in batches of two; the second runner stops at that batch."""
    path = tmp_path / 'epochs.py'
    path.write_text(f"""
_base_ = {str(segmentation_config)!r}
train_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(indices=3),
)
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)
param_scheduler = None
runner_type = {runner_type!r}
""")
    assert_mistake(run_here('train.py', path), words, 'set train_dataloader.batch_size to 2')


def test_a_metric_of_another_package(run_here, segmentation_config, tmp_path):
    path = tmp_path / 'boxes.py'
    path.write_text(f"""
_base_ = {str(segmentation_config)!r}
val_evaluator = dict(_delete_=True, type='mmdet.CocoMetric', metric='bbox')
""")
    result = run_here('train.py', path)
    assert_mistake(result, 'CocoMetric of mmdet cannot evaluate the predictions of EncoderDecoder')
    assert 'Iter(train)' not in result[1]


def test_option_without_a_value(run_here, detection_config):
    code, err = run_here('train.py', detection_config, '--cfg-options', 'model')
    assert code == 2
    assert "--cfg-options: must be KEY=VALUE, but got 'model'" in err


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('{', 'is not valid JSON'),
        ('[1, 2]', r"not in COCO format: \['images', 'annotations', 'categories'\] must be lists"),
        ('{"a": 1}', r"must be lists of objects, but the file has the keys \['a'\]"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
            '`annotations` is empty. There is nothing to learn',
        ),
    ],
)
def test_annotations_that_are_not_coco(run_here, detection_config, tmp_path, content, words):
    path = tmp_path / 'wrong.json'
    path.write_text(content)
    option = f'train_dataloader.dataset.ann_file={path}'
    result = run_here('train.py', detection_config, '--cfg-options', option)
    assert_mistake(result, re.escape(str(path)), words)


def test_categories_of_other_names(run_here, detection_config, data_root, tmp_path):
    coco = json.loads((data_root / 'instances.json').read_text())
    coco['categories'] = [dict(id=1, name='zebra'), dict(id=2, name='gnu')]
    (tmp_path / 'other.json').write_text(json.dumps(coco))
    option = f'train_dataloader.dataset.ann_file={tmp_path}/other.json'
    result = run_here('train.py', detection_config, '--cfg-options', option)
    assert_mistake(result, r"\['zebra', 'gnu'\].*\['box', 'bar'\]")


def test_wrong_checkpoints(run_here, detection_run, detection_config, tmp_path):
    whole = detection_run[0] / 'epoch_1.pth'
    state = torch.load(whole, weights_only=False)['state_dict']
    (tmp_path / 'short.pth').write_bytes(whole.read_bytes()[:50_000])
    (tmp_path / 'text.pth').write_text('hello')
    torch.save({'state_dict': {'conv.weight': torch.zeros(2)}}, tmp_path / 'other.pth')
    part = {k: v for k, v in state.items() if 'layers.1.blocks' not in k}
    torch.save({'state_dict': part}, tmp_path / 'part.pth')
    headless = {k: v for k, v in state.items() if k.startswith('backbone.')}
    torch.save({'state_dict': headless}, tmp_path / 'headless.pth')
    for name, words in (
        ('nope.pth', "'nope.pth' does not exist"),
        ('short.pth', "'short.pth' cannot be read; it may be truncated"),
        ('text.pth', "'text.pth' cannot be read; it may be truncated"),
        ('other.pth', r'does not match MaskRCNN: 0 of \d+.*missing: backbone.*unexpected: conv'),
        ('part.pth', r'missing: backbone\.layers\.1\.blocks\.0\.norm'),
        ('headless.pth', r'missing: neck\.'),
    ):
        assert_mistake(run_here('test.py', detection_config, name), words)


def test_out_must_be_a_pickle_for_detection(run_here, detection_config):
    result = run_here('test.py', detection_config, 'x.pth', '--out', 'folder')
    assert_mistake(result, "--out must end with .*'folder'")


def test_an_internal_error_keeps_its_traceback(run_here, detection_config, monkeypatch):
    from mmengine.runner import Runner

    def fail(self):
        raise RuntimeError('a bug')

    monkeypatch.setattr(Runner, 'train', fail)
    with pytest.raises(RuntimeError, match='a bug'):
        run_here('train.py', detection_config)


def test_traceback_on_demand(run_here, monkeypatch):
    from mmvmamba.engine.errors import UserError

    monkeypatch.setenv('MMVMAMBA_TRACEBACK', '1')
    with pytest.raises(UserError, match='does not exist'):
        run_here('train.py', 'no.py')
