"""Measurements of models over the size of their images."""

import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmvmamba.nn import VMambaNet

from ...analysis_tools import load
from .helpers import GPU, PAPERS, THIN, read

throughput, resolution_scaling = load('throughput'), load('resolution_scaling')
load_model = load('analysis_model').load_model


class Drifting(nn.Module):
    """Tells dark from light by BatchNorm's statistics, which training on noise changes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.5)

    def forward(self, x):
        brightness = self.norm(x).mean((1, 2, 3)) + 5
        return torch.stack([-brightness, brightness], 1)


class Hungry(nn.Module):
    """Needs more memory than there is for large images."""

    def forward(self, x):
        if x.shape[-1] > 64 and not x.is_meta:
            raise torch.cuda.OutOfMemoryError('out of memory')
        return x.square()


@pytest.fixture
def importable(monkeypatch):
    """Make the classes above importable by name."""
    monkeypatch.setitem(sys.modules, 'user_models', sys.modules[__name__])
    return 'user_models'


@pytest.mark.parametrize('power', [0.5, 1.0, 2.0])
def test_exponent_of_a_power(power):
    pixels = [side**2 for side in (224, 384, 512)]
    assert resolution_scaling.growth_exponent(
        pixels, [3 * p**power for p in pixels]
    ) == pytest.approx(power)


def test_exponent_is_least_squares():
    pixels, costs = [1, 4, 9, 16], [2.0, 7.0, 21.0, 30.0]
    expected = np.polyfit(np.log(pixels), np.log(costs), 1)[0]
    assert resolution_scaling.growth_exponent(pixels, costs) == pytest.approx(expected)


def test_resolution_scaling(run_here, weights, tmp_path):
    out = tmp_path / 'scaling.png'
    short = ('--seconds', 0, '--min-rounds', 1, '--threads', 1, '--device', 'cpu')
    models = (THIN, 'torch.nn:AvgPool2d+kernel_size=4')
    code, log = run_here(
        'analysis_tools/resolution_scaling.py', *models, '--sizes', '64', '32x64', *short,
        *('--modes', 'inference', '--no-amp', '--batch-size', 1, '--out', out),
    )  # fmt: skip
    assert code == 0, log
    numbers = read(out, 'resolution_scaling')
    rows = numbers['results']
    assert [(row['model'], row['size']) for row in rows] == [
        (model, size) for size in ('32x64', '64') for model in models
    ]
    net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    params = sum(p.numel() for p in net.parameters())
    assert rows[0]['params'] == params and rows[1]['params'] == 0
    assert rows[0]['inference_mib'] > rows[0]['inference_extra_mib'] > 0
    # The head's product and bias aside, all of it grows with the pixels.
    power = numbers['exponents'][THIN]['flops']
    assert power == dict(p=pytest.approx(1, abs=0.05), sizes=['32x64', '64'])
    assert 'train_ms' not in rows[0] and 'top1' not in rows[0]


def test_resolution_scaling_with_training_and_accuracy(
    run_here, classification_config, weights, tmp_path
):
    config, folder = classification_config, data_root(classification_config)
    torch.manual_seed(0)
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=load_model(str(config)).net.state_dict()), file)
    out = tmp_path / 'scaling.png'
    code, log = run_here(
        'analysis_tools/resolution_scaling.py', config, THIN, '--sizes', '32', '64', '--seconds', 0,
        *('--min-rounds', 1, '--checkpoint', file, 'none', '--dataset', folder),
        *('--out', out, '--device', 'cpu', '--batch-size', 2),
    )  # fmt: skip
    assert code == 0, log
    rows = read(out, 'resolution_scaling')['results']
    assert [row['model'] for row in rows[:2]] == ['classification (classifier.pth)', THIN]
    assert [('top1' in row) for row in rows] == [True, False] * 2
    assert all(0 <= row['top1'] <= 100 for row in rows[::2])
    for row in rows:
        assert row['train_images_per_s'] == pytest.approx(1e3 / row['train_ms'], rel=1e-2)


def test_checkpoints_of_one_name_are_told_apart(run_here, tmp_path):
    files = []
    for seed, folder in enumerate('ab'):
        torch.manual_seed(seed)
        net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
        files.append(tmp_path / folder / 'e.pth')
        files[-1].parent.mkdir()
        torch.save(dict(model=net.state_dict()), files[-1])
    rows = scaling(run_here, tmp_path, THIN, THIN, '--sizes', 32, '--modes', '--checkpoint', *files)
    assert [row['model'] for row in rows['results']] == [f'{THIN} (e.pth)', f'{THIN} (e.pth) #2']


def data_root(config):
    return Config.fromfile(config).test_dataloader.dataset.data_root


def scaling(run_here, tmp_path, *args):
    """The numbers of a short measurement."""
    out = tmp_path / 'scaling.png'
    short = ('--seconds', 0, '--min-rounds', 1, '--batch-size', 2, '--device', 'cpu')
    code, log = run_here('analysis_tools/resolution_scaling.py', *args, *short, '--out', out)
    assert code == 0, log
    return read(out, 'resolution_scaling')


def test_accuracy_is_that_before_the_steps_of_training(
    run_here, classification_config, importable, tmp_path
):
    net = Drifting()
    net.norm.running_mean.fill_(5)
    torch.save(dict(state_dict=net.state_dict()), tmp_path / 'net.pth')
    args = ('--checkpoint', tmp_path / 'net.pth', '--dataset', data_root(classification_config))
    rows = scaling(run_here, tmp_path, f'{importable}:Drifting', *args, '--sizes', 32)['results']
    assert rows[0]['top1'] == 100 and rows[0]['train_ms'] > 0


def test_what_finds_no_memory_is_null(run_here, importable, tmp_path):
    hungry = f'{importable}:Hungry'
    args = ('--sizes', 32, 64, 96, '--modes', 'inference')
    numbers = scaling(run_here, tmp_path, hungry, THIN, *args)
    times = [row['inference_ms'] for row in numbers['results'] if row['model'] == hungry]
    assert times[2] is None and all(times[:2])
    powers = numbers['exponents']
    assert powers[hungry]['inference_ms']['sizes'] == ['32', '64']
    assert powers[THIN]['inference_ms']['sizes'] == ['32', '64', '96']
    text = resolution_scaling.power_text
    assert text(dict(p=1.5, sizes=['32', '64']), 3) == '(1.50; 32, 64)'
    assert text(dict(p=1.5, sizes=['32', '64']), 2) == '(1.50)'


def test_resolution_scaling_shows_its_rounds(run_here, tmp_path, monkeypatch):
    tracked = []
    monkeypatch.setattr(
        throughput.figures, 'track', lambda task, items: tracked.append((task, len(items))) or items
    )
    scaling(run_here, tmp_path, THIN, '--sizes', 32, '--modes', 'inference', 'train')
    # For each mode the models, each tried, then the rounds.
    assert tracked == [('inference, 32', 1)] * 2 + [('train, 32', 1)] * 2


@pytest.mark.slow
def test_resolution_scaling_with_every_option_at_its_default(run_here, tmp_path):
    code, log = run_here('analysis_tools/resolution_scaling.py', THIN, '--sizes', 32, 64)
    assert code == 0, log
    numbers = read(tmp_path / 'work_dirs/resolution_scaling.png', 'resolution_scaling')
    assert {'flops', 'train_ms', 'train_extra_mib'} <= set(numbers['exponents'][THIN])


@pytest.mark.slow
def test_resolution_scaling_of_the_papers_models(run_here, tmp_path):
    others = (
        'xcit-small-12-p16_3rdparty_in1k',
        'mmvmamba::comparison/s4nd-convnext-t_8xb128_in1k.py',
    )
    numbers = scaling(run_here, tmp_path, *PAPERS, *others, '--sizes', 64)
    rows = numbers['results']
    assert len(rows) == 10 and all(row['train_ms'] > 0 and row['flops'] > 0 for row in rows)


@pytest.mark.cuda
@GPU
def test_resolution_scaling_on_a_gpu(run_here, tmp_path):
    out = tmp_path / 'scaling.png'
    short = ('--seconds', 0, '--min-rounds', 1, '--batch-size', 2, '--device', 'cuda')
    args = (THIN, 'deit-small_4xb256_in1k', '--sizes', 64, 96, *short, '--out', out)
    code, log = run_here('analysis_tools/resolution_scaling.py', *args)
    assert code == 0, log
    for row in read(out, 'resolution_scaling')['results']:
        assert row['train_ms'] > 0 and row['train_mib'] > row['inference_mib'] > 0


@pytest.mark.parametrize(
    'args, message',
    [
        (('--dataset', '.'), '--dataset needs --checkpoint'),
        (('--checkpoint', 'a', 'b'), '--checkpoint must have a value for each of 1 models'),
        (
            ('--checkpoint', 'a', '--dataset', '.', '--sizes', '32x64'),
            "square --sizes, but got ['32x64']",
        ),
        (('--batch-size', '0'), '--batch-size: must be an integer of at least 1'),
    ],
)
def test_resolution_scaling_refuses(run_here, args, message):
    code, log = run_here('analysis_tools/resolution_scaling.py', THIN, *args)
    assert code == 2 and message in log and 'Traceback' not in log
