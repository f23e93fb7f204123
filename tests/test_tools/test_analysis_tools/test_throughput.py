"""Comparisons of models, and the tables of their results."""

import argparse

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from ...analysis_tools import load  # noqa: E402

throughput = load('throughput')
AnalysisModel = load('analysis_model').AnalysisModel


class Recorder(nn.Module):
    """Notes what each call was given, and in which order."""

    calls: list = []

    def __init__(self, name='one'):
        super().__init__()
        self.name = name
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        out = self.conv(x)
        self.calls.append(
            dict(
                name=self.name,
                shape=tuple(x.shape),
                channels_last=x.is_contiguous(memory_format=torch.channels_last),
                weight_last=self.conv.weight.is_contiguous(memory_format=torch.channels_last),
                training=self.training,
                grad=torch.is_grad_enabled(),
                dtype=out.dtype,
                precision=torch.get_float32_matmul_precision(),
            )
        )
        return out


class OwnTensors(nn.Module):
    """Adds a tensor of the CPU, and asks for a value."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = x + torch.ones(3, 1, 1)
        return self.conv(x) if x.max() > 0 else None


SPECS = [f'{__name__}:Recorder+name={name}' for name in ('one', 'two')]


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(Recorder, 'calls', [])
    monkeypatch.setattr(throughput.measure, 'MIN_SAMPLE', 0)
    precision, allow_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield Recorder.calls
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = allow_tf32


def run(*options):
    parser = argparse.ArgumentParser()
    throughput.add_arguments(parser)
    args = parser.parse_args(['--seconds', '0', '--min-rounds', '3', '--batch-size', '2', *options])
    args.device = torch.device('cpu')
    return throughput.compare(SPECS, throughput.read_settings(args, (8, 10)), args.modes)


def test_models_run_in_turn_with_the_settings(calls):
    run()
    counted, timed = calls[:2], calls[2:]
    assert [call['shape'] for call in counted] == [(1, 3, 8, 10)] * 2
    half = ['one', 'one', 'two', 'two'] + ['one', 'two'] * 3
    assert [call['name'] for call in timed] == half * 2
    for i, call in enumerate(timed):
        train = i >= len(half)
        assert (call['training'], call['grad']) == (train, train)
        assert call['shape'] == (2, 3, 8, 10) and call['channels_last'] and call['weight_last']
        assert call['dtype'] == torch.bfloat16 and call['precision'] == 'high'


def test_settings_off(calls):
    run('--modes', 'inference', '--no-amp', '--no-channels-last', '--no-tf32')
    assert not any(call['channels_last'] or call['weight_last'] for call in calls)
    assert {call['dtype'] for call in calls} == {torch.float32}
    assert {call['precision'] for call in calls[2:]} == {'highest'}


def test_images_per_second_are_the_batch_over_the_median(calls, monkeypatch):
    monkeypatch.setattr(
        throughput.measure,
        'interleave',
        lambda calls, *_, **__: {s: [0.5, 0.25, 9.0] for s in SPECS[:1]},
    )
    rows = run('--modes', 'inference')
    assert rows[SPECS[0]]['inference_images_per_s'] == 4.0
    assert rows[SPECS[1]]['inference_images_per_s'] is None  # what found no memory
    # 3 x 4 x 3 x 3 weights at 6 x 8 positions.
    assert rows[SPECS[0]]['params'] == 112 and rows[SPECS[0]]['flops'] == 108 * 48


def test_compiles_where_asked(calls, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model, **_: compiled.append(model.name) or model)
    run('--modes', 'inference', '--compile')
    assert compiled == SPECS


def test_what_cannot_run_on_shapes_alone_is_counted_all_the_same():
    model = AnalysisModel('own', net := OwnTensors(), net)
    assert throughput.count(model, (8, 10)) == dict(params=112, flops=108 * 48)
    assert model.mean.device.type == 'cpu' and not net.conv.weight.is_meta


def test_table():
    rows = [dict(name='a', params=1_234_567, flops=None), dict(name='long', params=0, flops=2e9)]
    columns = dict(name='model', params='M', flops='G', top1='no value in any row')
    assert throughput.format_table(rows, columns) == (
        '| model |   M |    G |\n'
        '| ----- | --- | ---- |\n'
        '| a     | 1.2 |    - |\n'
        '| long  | 0.0 | 2.00 |'
    )
