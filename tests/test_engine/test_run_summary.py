"""Texts of the summaries; tests/test_tools/test_train_test.py runs whole tools."""

import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from torch import nn

from mmvmamba.engine import run_summary

ROOT = Path(__file__).parents[2]


def lines(section):
    return list(section[1])


def test_layout():
    sections = [('Data', ['4 images', '! few']), ('Empty', []), ('Log', ['stop! x'])]
    text, attention = run_summary.layout(sections)
    assert text.splitlines() == [
        '',
        'Data         4 images',
        '!            few',
        'Log          stop! x',
    ]
    assert attention == [2]


def test_environment():
    texts = lines(run_summary.environment(Config(dict(model=dict())), on_cpu=True))
    assert f'torch {torch.__version__}' in texts[0] and 'mmengine ' in texts[1]
    assert texts[2].startswith('device: CPU, ') and texts[3].startswith('scan: ')
    backbone = dict(backbone=dict(backend='reference'))
    tta = Config(dict(model=dict(type='A', module=backbone)))
    assert 'scan: reference, as ' in lines(run_summary.environment(tta, on_cpu=True))[3]


def test_environment_of_several_gpus(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.current_device', lambda: 1)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda index: f'GPU {index}')
    monkeypatch.setattr(run_summary, 'get_world_size', lambda: 8)
    monkeypatch.setattr(run_summary.info, 'backends', lambda: {'cpu': 'a', 'cuda:1': 'b'})
    texts = lines(run_summary.environment(Config(dict(model=dict())), on_cpu=False))
    assert texts[2:] == ['device: 8 processes, the first on GPU 1', 'scan: b']


class Dataset(list):
    metainfo = dict(classes=tuple('abcdefghijkl'))
    ann_file = 'a.json'


def loop_of(dataset):
    return SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))


def test_data():
    wrapped = SimpleNamespace(dataset=Dataset([1]), metainfo=Dataset.metainfo)
    runner = SimpleNamespace(
        train_loop=loop_of(Dataset(range(1200))),
        val_loop=loop_of(wrapped),
        test_loop=None,
    )
    assert lines(run_summary.data(runner, 'train', 'val', 'test')) == [
        'train: 1,200 images, Dataset a.json',
        'val: stream of images, Dataset a.json',
        '12 classes: a, b, c, d, e, f, g, h, i, j, ... (l)',
    ]


class Batches(list):
    """A data loader."""

    batch_sampler = SimpleNamespace(batch_size=2)


def runner_of(model, load_from=None, resume=False, **settings):
    return SimpleNamespace(
        model=model,
        cfg=Config(dict(model=settings)),
        work_dir='run',
        epoch=3,
        iter=40,
        _load_from=load_from,
        _resume=resume,
    )


def test_model_and_its_weights():
    model = nn.Linear(2, 3)
    model.bias.requires_grad = False
    pretrained = dict(init_cfg=dict(type='Pretrained', checkpoint='http://me:pw@host/a.pth'))
    cases = (
        (runner_of(model), 'random'),
        (runner_of(model, backbone=pretrained), 'backbone from http://host/a.pth, the rest'),
        (runner_of(model, init_cfg=[dict(type='A'), dict(checkpoint='d.pth')]), 'from d.pth'),
        (runner_of(model, backbone=dict(pretrained=True)), 'backbone from its pretrained weights,'),
        (runner_of(model, load_from='b.pth', backbone=pretrained), 'from b.pth'),
        (runner_of(model, load_from='c.pth', resume=True), 'resumed from c.pth at epoch 3, iter'),
    )
    for runner, weights in cases:
        name, source = lines(run_summary.model(runner))
        assert name == 'Linear, 9 parameters, 6 trained'
        assert source.startswith(f'weights: {weights}')


@pytest.mark.parametrize(
    ('scaling', 'accumulated', 'expected'),
    [
        (dict(), 1, 'learning rate 0.0001'),
        (dict(base_batch_size=2), 1, 'learning rate 0.0001'),
        (dict(base_batch_size=16), 8, 'learning rate 0.0001'),
        (
            dict(base_batch_size=16, enable=True),
            1,
            '! learning rate 0.0001 -> 1.25e-05: 0.0001 is for 16 images per iteration, and this '
            'run has 2',
        ),
        (
            dict(base_batch_size=16),
            1,
            '! learning rate 0.0001, which is for 16 images per iteration, but this run has 2: '
            '--auto-scale-lr would use 1.25e-05',
        ),
        (
            dict(base_batch_size=16),
            4,
            '! learning rate 0.0001: 0.0001 is for 16 images per optimizer step, and this run has '
            '8; --auto-scale-lr counts the 2 of an iteration only, so set '
            'optim_wrapper.optimizer.lr=5e-05 and auto_scale_lr.enable=False',
        ),
        (
            dict(base_batch_size=16, enable=True),
            8,
            '! learning rate 0.0001 -> 1.25e-05: 0.0001 is for 16 images per optimizer step, and '
            'this run has 16; --auto-scale-lr counts the 2 of an iteration only, so set '
            'optim_wrapper.optimizer.lr=0.0001 and auto_scale_lr.enable=False',
        ),
    ],
)
def test_schedule(scaling, accumulated, expected):
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), weight_decay=0.05)
    loop = SimpleNamespace(max_iters=84, max_epochs=12, val_interval=1)
    loop.dataloader = Batches([None] * 7)
    settings = dict(optim_wrapper=dict(optimizer=dict(lr=1e-4)), auto_scale_lr=scaling)
    runner = SimpleNamespace(
        train_loop=loop,
        val_loop=SimpleNamespace(),
        cfg=Config(settings),
        optim_wrapper=SimpleNamespace(optimizer=optimizer, _accumulative_counts=accumulated),
    )
    steps = f', gradients of {accumulated} iterations accumulated' if accumulated > 1 else ''
    assert lines(run_summary.schedule(runner)) == [
        '12 epochs of 7 iterations, batch size 2; validation every epoch',
        f'AdamW, weight decay 0.05{steps}, SimpleNamespace',
        expected,
    ]


@pytest.mark.parametrize('save_best', [None, 'a', ['a', 'b']])
def test_checkpoints_of_a_run(save_best, tmp_path):
    (tmp_path / 'last_checkpoint').write_text('last.pth')
    hook = CheckpointHook(save_best=save_best, rule=save_best and 'greater')
    suffix = '_a' if isinstance(save_best, list) else ''
    known = {f'best_score{suffix}': 0.5, f'best_ckpt{suffix}': 'best.pth'} if save_best else {}
    runner = SimpleNamespace(
        hooks=[hook],
        work_dir=str(tmp_path),
        message_hub=SimpleNamespace(runtime_info=known),
    )
    best, score, last = run_summary.trained(runner)
    assert last == 'last.pth'
    assert (best, score) == (('best.pth', 'a 0.5000') if save_best else (None, ''))
    runner.__dict__.update(iter=12, epoch=3, train_loop=None, logger=None, cfg=Config(dict(a=1)))
    found = dict(run_summary.results(runner, dict(a=0.25), 61))
    assert found['Finished'] == ['3 epochs, 12 iterations in 0:01:01']
    assert found['Best'] == (['a 0.5000: best.pth'] if save_best else [])
    resumed = dict(run_summary.results(runner, {}, 61, first_iteration=8))['Finished']
    assert resumed == ['3 epochs, 12 iterations; since resuming, 4 iterations in 0:01:01']
    assert found['Last'] == ['last.pth']
    assert [line.split()[0] for line in found['Validation']] == ([] if save_best else ['a', 'to'])


def test_next_commands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main = SimpleNamespace(__file__=str(ROOT / 'tools' / 'train.py'))
    monkeypatch.setitem(sys.modules, '__main__', main)
    test, inference = run_summary.next_commands('a run/x.py', 'a run/best.pth')
    assert shlex.split(test)[1:] == [
        str(ROOT / 'tools' / 'test.py'),
        os.path.join('a run', 'x.py'),
        os.path.join('a run', 'best.pth'),
    ]
    assert Path(shlex.split(inference)[1]).is_file()
    assert run_summary.next_commands('x.py', None) == []
    main.__file__ = str(tmp_path / 'train.py')
    assert run_summary.next_commands('x.py', 'best.pth') == []


def test_metric_tables():
    boxes = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75, 'coco/bbox_mAP_l': -1.0}
    masks = {'coco/segm_mAP': 0.25, 'coco/segm_mAP_50': 1.0, 'coco/segm_mAP_l': -1.0}
    assert run_summary.metric_table(boxes | masks | dict(time=3.0)) == [
        '        mAP  mAP_50  mAP_l',
        'bbox  0.500   0.750      -',
        'segm  0.250   1.000      -',
    ]
    assert run_summary.metric_table({'mIoU': np.float32(50), 'accuracy/top1': 7, 'x': 'y'}) == [
        'mIoU           50.0000',
        'accuracy/top1  7.0000',
    ]
    assert run_summary.metric_table({}) == []


def test_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_summary.short_path(str(tmp_path / 'a' / 'b')) == os.path.join('a', 'b')
    assert run_summary.short_path(str(tmp_path.parent)) == str(tmp_path.parent)
    assert run_summary.short_path('') == os.curdir
    assert run_summary.short_path('..a') == '..a'
    assert run_summary.short_path('s3://a/b') == 's3://a/b'
    assert run_summary.duration(3725.4) == '1:02:05'
