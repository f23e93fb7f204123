"""The benchmarks run and write what they promise; nothing here is timed."""

import json
import runpy
import subprocess
import sys

import pytest
import torch

from mmvmamba.analysis import measure
from mmvmamba.nn import VMambaNet

from .benchmark_modules import BENCHMARKS, load
from .test_ops.onnx_graphs import NEEDS_EXPORTER

SCRIPTS = ('ops', 'backbone', 'detector', 'passes', 'plot', 'sass', 'issued')
RUN_BELOW = ('ops', 'backbone', 'plot')
HEAD = {'benchmark', 'date', 'device', 'machine', 'versions', 'results', 'summary'}
SHORT = ('--seconds', '0', '--min-rounds', '1', '--threads', '1')


def run_script(name, *args):
    command = [sys.executable, str(BENCHMARKS / f'{name}.py'), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_head(path, benchmark):
    data = json.loads(path.read_text())
    assert set(data) == HEAD and data['benchmark'] == benchmark
    assert {'cpu', 'cores', 'threads'} <= set(data['machine'])
    assert {'python', 'torch', 'mmvmamba'} <= set(data['versions'])
    assert '/' not in json.dumps(data['machine'])
    return data['results']


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_describes_the_options(name, monkeypatch, capsys):
    if name in RUN_BELOW:  # in a process of its own, too
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(BENCHMARKS / f'{name}.py'), run_name='__main__')
        assert not done.value.code
        text = capsys.readouterr().out
    else:
        done = run_script(name, '--help')
        assert done.returncode == 0, done.stderr
        text = done.stdout
    assert '--out' in text


def test_summary_is_median_and_interquartile_range():
    row = measure.summarize([0.004, 0.001, 0.002, 0.003, 0.100])
    assert row['median_ms'] == 3 and row['min_ms'] == 1 and row['rounds'] == 5
    assert row['spread'] == pytest.approx(2 / 3, abs=1e-4)
    assert measure.summarize([0.5]) == dict(median_ms=500, min_ms=500, spread=0, rounds=1)


def test_interleaves_the_calls(monkeypatch):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'ab'}
    monkeypatch.setattr(measure, 'MIN_SAMPLE', 0)
    times = measure.interleave(calls, torch.device('cpu'), seconds=0, min_rounds=3)
    assert order == list('aabb' + 'ab' * 3)
    assert {name: len(samples) for name, samples in times.items()} == dict(a=3, b=3)


def test_extra_memory_counts_results_and_temporaries():
    x = torch.zeros(1000)
    assert measure.extra_memory(lambda: (x + 1) * 2, torch.device('cpu')) in range(8000, 8200)


@pytest.mark.parametrize('text', ['224x', 'x', '0', '-1', 'big'])
def test_refuses_what_is_no_size(text):
    with pytest.raises(Exception, match='800x1333'):
        measure.parse_size(text)


def test_ratios_refer_to_the_baseline():
    common = load('common')
    rows = [dict(model='a', median_ms=3.0), dict(model='b', median_ms=2.0)]
    common.add_ratios(rows, 'model', 'b')
    assert [row['ratio'] for row in rows] == [1.5, 1.0]
    common.add_ratios(rows, 'model', 'c')
    assert [row['ratio'] for row in rows] == [None, None]


def test_ops(tmp_path):
    out = tmp_path / 'ops.json'
    done = run_script('ops', '--sizes', '32x48', '--stages', 0, '--out', out, *SHORT)
    assert done.returncode == 0, done.stderr
    rows = check_head(out, 'ops')
    assert 'reference' in [row['candidate'] for row in rows]
    for row in rows:
        assert row['map'] == '8x12' and row['channels'] == 96
        assert min(row['forward_ms'], row['training_ms'], row['forward_mib']) > 0


def test_backbone_and_plot(tmp_path):
    out, picture = tmp_path / 'backbone.json', tmp_path / 'latency.png'
    models = ('vmamba-t', 'vmamba-t-nocore')
    settings = ('--modes', 'inference', '--precisions', 'fp32', '--runs', 'eager')
    done = run_script(
        'backbone', '--models', *models, '--sizes', '32', '64', *settings, '--out', out, *SHORT
    )
    assert done.returncode == 0, done.stderr
    assert 'core share of vmamba-t at 64' in done.stdout
    rows = check_head(out, 'backbone')
    assert [(row['model'], row['size']) for row in rows] == [
        (model, size) for size in ('32', '64') for model in models
    ]
    assert {'median_ms', 'images_per_s', 'ns_per_pixel', 'extra_mib', 'over swin-t'} <= set(rows[0])
    done = run_script('plot', out, '--out', picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b'\x89PNG')
    speed = ('--speed-over', 'swin-t', '--out', tmp_path / 'speed.png')
    done = run_script('plot', out, *speed)
    assert done.returncode == 1 and 'no results of swin-t' in done.stderr


def test_plot_of_the_recorded_speed():
    """The numbers behind docs/images/speed.png."""
    plot = load('plot')
    rows, machines = plot.read_rows([BENCHMARKS.parent / 'docs/images/cpu_latency.json'])
    figure = plot.draw_speed(rows, machines, 'swin-t')
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:2] == ['1.45x', '60.5 ms'] and len(figure.axes[0].patches) == 15
    assert '1.45 to 1.81 times as fast as Swin-T' in figure.get_suptitle()


def speed_row(mode, model, ms, size=224):
    setting = dict(precision='fp32', run='eager', device='cpu', batch=1)
    return dict(setting, mode=mode, model=model, height=size, width=size, median_ms=ms)


@pytest.mark.parametrize(
    ('rows', 'words'),
    [
        (['train vmamba-t 50', 'train swin-t 100'], ''),
        (['inference swin-t 100'], ''),
        (
            ['inference swin-t 100', 'inference vmamba-t 50'],
            'On a CPU, VMamba-T runs 2.00 times as fast as Swin-T in inference',
        ),
        (
            ['inference vmamba-t 50', 'inference convnext-t 80', 'inference swin-t 100']
            + ['inference convnext-t 200 448', 'inference swin-t 400 448'],
            'On a CPU, ConvNeXt-T runs 1.25 to 2.00 times as fast as Swin-T in inference',
        ),
    ],
)
def test_headline_of_the_speed(rows, words):
    """It is about a model with results in all inference groups, if there is one."""
    plot = load('plot')
    rows = [row.split() for row in rows]
    rows = [speed_row(mode, model, *map(int, numbers)) for mode, model, *numbers in rows]
    assert plot.draw_speed(rows, ['a CPU'], 'swin-t').get_suptitle() == words


class NotExportable(torch.nn.Module):
    def forward(self, x):
        if torch.compiler.is_compiling():
            raise ValueError('it is not exportable\nat all')
        return x


@pytest.mark.parametrize('packages', [pytest.param(None, marks=NEEDS_EXPORTER), {'torchao': 'no'}])
def test_deployed(packages, monkeypatch, caplog):
    """Without what takes long: the compiler, and the scans in standard ops."""
    pytest.importorskip('torchao')
    backbone = load('backbone')
    from mmvmamba.export import int8

    models = {
        'vmamba-t': VMambaNet(dict(dims=(8,) * 4, depths=(1,) * 4)),
        'swin-t': torch.nn.Sequential(torch.nn.Conv2d(3, 8, 32, 32), torch.nn.Linear(2, 8)),
        'convnext-t': NotExportable(),
    }
    left = [('fp32', 'compiled'), ('fp32', 'onnx'), ('int8', 'onnx')]
    ways = [way for way in backbone.DEPLOYED if way not in left]
    monkeypatch.setattr(backbone, 'CPU_SETTINGS', [((64, 64), 1, 'deployed', *ways)])
    monkeypatch.setattr(backbone, 'build_model', lambda name, *_: models[name])
    monkeypatch.setattr(int8, 'load', lambda path: torch.export.load(path).module())
    if packages:
        monkeypatch.setattr(backbone, 'import_error', packages.get)
    args = backbone.parse_args(['--cpu', '--seconds', '0', '--min-rounds', '1'])
    with caplog.at_level('INFO', 'benchmarks'):
        rows = backbone.run(args, torch.device('cpu'))
    if packages:
        assert not rows and 'left out: no torchao' in caplog.text
        return
    for name in ('vmamba-t', 'swin-t'):
        part = [row for row in rows if row['model'] == name]
        assert [(row['precision'], row['run']) for row in part] == ways
        assert all(row['over swin-t'] > 0 and row['over eager'] > 0 for row in part)
    assert [row['run'] for row in rows if row['model'] == 'convnext-t'] == ['eager']
    left_out = [text for text in caplog.messages if 'left out: ' in text]
    assert len(left_out) == len(ways) - 1 and all('\n' not in text for text in left_out)
    assert len(backbone.gains(rows, 'precision', 'fp32', 'int8')) == 2


def test_plot_refuses_other_files(tmp_path):
    other = tmp_path / 'other.json'
    other.write_text('[]')
    done = run_script('plot', other, '--out', tmp_path / 'x.png')
    assert done.returncode == 1 and 'backbone.py' in done.stderr and 'Traceback' not in done.stderr
