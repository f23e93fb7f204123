"""tools/analysis_tools/compare_runs.py on short logs."""

import json
import sys

import pytest
from PIL import Image

from mmvmamba.engine.errors import UserError

from ...analysis_tools import load

tool = load('compare_runs')


def train_row(step, loss, **others):
    return dict(lr=0.1, loss=loss, time=0.5, epoch=1, step=step, **others)


def val_row(step, ap, **others):
    return {'coco/segm_mAP': ap, 'data_time': 0.1, 'time': 0.2, 'step': step, **others}


def write_log(folder, time, rows):
    path = folder / time / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n{"lr": 0.')  # the last line is incomplete


@pytest.fixture
def runs(tmp_path):
    """A run on a GPU that was interrupted and resumed, and one on a CPU with per-class AP."""
    gpu, cpu = tmp_path / 'gpu', tmp_path / 'cpu'
    first = [train_row(10, 3.0, memory=900), val_row(1, 0.4), train_row(20, 9.0, memory=900)]
    write_log(gpu, '20260101_000000', [*first, val_row(2, 0.9)])
    second = [train_row(20, 2.0, memory=1000), val_row(2, 0.3), train_row(30, 1.0, memory=800)]
    write_log(gpu, '20260102_000000', second)
    rows = [train_row(10, 4.0), val_row(1, 0.25, **{'coco/cat_precision': float('nan')})]
    write_log(cpu, '20260101_000000', rows)
    return gpu, cpu


def test_table_and_curves(runs, monkeypatch, capsys, tmp_path):
    out = tmp_path / 'new' / 'curves.png'
    monkeypatch.setattr(sys, 'argv', ['compare_runs.py', *map(str, runs), '--out', str(out)])
    tool.main()
    gpu, cpu = map(str, runs)
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith('|')
    ]
    assert rows == [
        ['', gpu, cpu],
        ['---', '---', '---'],
        ['coco/segm_mAP: last (best)', '0.3 (0.4 at 1)', '0.25 (0.25 at 1)'],
        ['coco/cat_precision: last (best)', '-', '-'],
        ['training loss: last', '1', '4'],
        ['time per step (s): median', '0.5', '0.5'],
        ['GPU memory (MiB): maximum', '1000', '-'],
        ['training steps', '30', '10'],
    ]
    assert Image.open(out).size[0] > 600


def test_curves_of_joined_logs(runs):
    run = tool.read_run(runs[0])
    assert run.curve('loss') == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert run.curve('coco/segm_mAP') == [(1, 0.4), (2, 0.3)]
    figure = tool.draw([run, tool.read_run(runs[1])], ['loss', 'coco/segm_mAP'])
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]
    assert [ax.get_xlabel() for ax in figure.axes] == ['iteration', 'epoch']


def test_a_new_run_in_the_same_folder(tmp_path):
    write_log(tmp_path, '20260101_000000', [train_row(10, 3.0), val_row(1, 0.4)])
    write_log(tmp_path, '20260102_000000', [train_row(10, 5.0)])
    run = tool.read_run(tmp_path)
    assert run.curve('loss') == [(10, 5.0)] and not run.val


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--out', 'curves.pdf'], "argument --out: must end in .png, but got 'curves.pdf'"),
        (['--keys', 'loss'], '--keys needs --out'),
    ],
)
def test_wrong_options(options, words, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['compare_runs.py', str(runs[0]), *options])
    with pytest.raises(SystemExit):
        tool.main()
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ('key', 'best'),
    [
        ('coco/bbox_mAP_50', True),
        ('pascal_voc/AP50', True),
        ('coco/AR@100', True),
        ('coco_panoptic/PQ', True),
        ('mIoU', True),
        ('aAcc', True),
        ('mFscore', True),
        ('accuracy/top1', True),
        ('single-label/f1-score', True),
        ('loss', False),
        ('error/top1', False),
        ('depth/MAPE', False),
        ('rmse', False),
    ],
)
def test_metrics_with_a_best_value(key, best):
    assert tool.has_best(key) == best
    run = tool.Run('run', {}, {1: {key: 0.3}, 2: {key: 0.2}})
    assert tool.describe(run, key) == ('0.2 (0.3 at 1)' if best else '0.2')


def test_mistakes(runs, monkeypatch, tmp_path):
    with pytest.raises(UserError, match='has no log'):
        tool.read_run(tmp_path)
    options = ['--out', str(tmp_path / 'curves.png'), '--keys', 'los']
    monkeypatch.setattr(sys, 'argv', ['compare_runs.py', str(runs[0]), *options])
    with pytest.raises(UserError, match="no run has 'los'; did you mean loss"):
        tool.main()
    (tmp_path / '1' / 'vis_data').mkdir(parents=True)
    (tmp_path / '1' / 'vis_data' / 'scalars.json').write_text('{}}')
    with pytest.raises(UserError, match='is not a log of a training run'):
        tool.read_run(tmp_path)
