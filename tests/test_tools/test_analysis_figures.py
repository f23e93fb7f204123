"""The tools that draw the paper's figures."""

import json

import pytest
import torch
from PIL import Image

from mmvmamba.nn import VMambaNet

THIN = 'tiny+dims=(8,16,24,32)+depths=(1,1,1,1)'
HEAD = {'date', 'device', 'machine', 'versions', 'tool'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp('weights') / 'thin.pth'
    net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    torch.save(dict(model=net.state_dict()), path)
    return path


def read(path, tool):
    """The numbers beside a picture, which is there and not empty."""
    with Image.open(path) as image:
        assert image.format == 'PNG' and len(image.convert('RGB').getcolors(2**24)) > 20
    numbers = json.loads(path.with_suffix('.json').read_text())
    assert HEAD <= set(numbers) and numbers['tool'] == tool
    return numbers


def test_erf_before_and_after(run_here, data_root, weights, tmp_path, capfd):
    out = tmp_path / 'new' / 'erf.png'
    models = (THIN, f'{THIN}+ssm_init=zero', 'torch.nn:AvgPool2d+kernel_size=4')
    options = ('--images', data_root / 'images', '--size', '64x96', '--num-images', 3)
    checkpoints = ('--checkpoint', weights, 'none', 'none', '--trained', 'trained')
    code, log = run_here(
        'analysis_tools/erf.py', *models, *options, *checkpoints, '--out', out, '--device', 'cpu'
    )
    assert code == 0, log
    numbers = read(out, 'erf')
    assert numbers['size'] == '64x96' and numbers['images'] == 3
    rows = numbers['results']
    assert [(row['model'], row['state']) for row in rows] == [
        (THIN, 'random weights'),
        (THIN, 'trained'),
        (f'{THIN}+ssm_init=zero', 'random weights'),
        ('torch.nn:AvgPool2d+kernel_size=4', 'as the callable built it'),
    ]
    assert rows[0]['share_within'] != rows[1]['share_within']
    # A pooling sees its 4 x 4 pixels, whose corners are 1.5 sqrt(2) from their middle.
    assert rows[3]['radius_of_share'] == {'0.5': 1.58, '0.9': 2.12, '0.99': 2.12}
    assert rows[3]['share_within']['4'] == 1


@pytest.mark.parametrize(
    'args, message',
    [
        (('tiny', '--checkpoint', 'a', 'b'), '--checkpoint must name one for each of the 1 models'),
        (('tiny', '--images', 'nowhere'), "'nowhere' does not exist"),
        (('tiny', '--num-images', '0'), '--num-images must be at least 1'),
        (('tiny', '--out', 'erf.jpg'), '--out must end in .png'),
        (('tiny', '--device', 'abacus'), "--device 'abacus' cannot be used"),
        (('nothing', '--num-images', '1', '--size', '64'), "model 'nothing' is no architecture"),
    ],
)
def test_erf_refuses(run_here, args, message):
    code, log = run_here('analysis_tools/erf.py', *args)
    assert code == 2 and message in log and 'Traceback' not in log


@pytest.mark.parametrize('scan', ['cross', 'cascade'])
def test_activation_map(run_here, weights, tmp_path, scan):
    image = tmp_path / 'photo.jpg'
    noise = torch.randint(0, 255, (40, 60, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(image)
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=24)
    compare = ('--compare', f'deit-tiny_4xb256_in1k+arch={arch}') if scan == 'cross' else ()
    out = tmp_path / 'map.png'
    code, log = run_here(
        'analysis_tools/activation_map.py',
        *(image, f'{THIN}+scan={scan}', weights, '--query', 39, 0, '--size', '64x96', '--stage', 0),
        *(*compare, '--out', out, '--device', 'cpu'),
    )
    assert code == 0, log
    ours, *others = read(out, 'activation_map')['results']
    assert ours['shape'] == [16, 24] and ours['query'] == [15, 0] and 'thin.pth' in ours['model']
    for form in ('qk', 'decay'):
        images = torch.tensor(ours[form]['image_order'])
        assert images.shape == (4, 16, 24)
        along = [torch.tensor(path).numel() for path in ours[form]['path_order']]
        # A line of a cascade is a path of its own.
        assert along == [16 * 24] * 4 if scan == 'cross' else along == [24, 24, 16, 16]
        if scan == 'cross':
            summed = torch.tensor(ours[form]['summed'])
            torch.testing.assert_close(images.sum(0), summed, rtol=1e-4, atol=1e-5)
        assert torch.tensor(ours[form]['rollout']).sum() == pytest.approx(1, abs=1e-4)
    if scan == 'cross':
        (deit,) = others
        assert deit['shape'] == [4, 6] and deit['query'] == [3, 0] and deit['block'] == 1
        # The class token has the rest.
        assert 0.5 < torch.tensor(deit['softmax']['summed']).sum() < 1


@pytest.mark.parametrize(
    'args, message',
    [
        (('--query', '40', '0'), '--query must be in the image of 40x60 pixels, but got [40, 0]'),
        (('--query', '0', '0', '--stage', '4'), 'stage must be in [-4, 3], but got 4'),
        (('--query', '0', '0', '--block', '1'), '--block must be in [-1, 0], but got 1'),
    ],
)
def test_activation_map_refuses(run_here, tmp_path, args, message):
    Image.new('RGB', (60, 40)).save(tmp_path / 'photo.png')
    command = ('analysis_tools/activation_map.py', tmp_path / 'photo.png', THIN, 'none', *args)
    code, log = run_here(*command)
    assert code == 2 and message in log and 'Traceback' not in log


def test_activation_map_needs_an_image(run_here, tmp_path):
    code, log = run_here(
        'analysis_tools/activation_map.py', tmp_path / 'none.png', THIN, 'none', '--query', 0, 0
    )
    assert code == 2 and 'cannot be read' in log


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
    text = classification_config.read_text()
    config = tmp_path / 'sized.py'
    resize = "dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')"
    config.write_text(text.replace("dict(type='PackInputs')", resize))
    from mmvmamba.analysis.models import load_model

    torch.manual_seed(0)
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=load_model(str(config)).net.state_dict()), file)
    out = tmp_path / 'scaling.png'
    code, log = run_here(
        'analysis_tools/resolution_scaling.py', config, THIN, '--sizes', '32', '64', '--seconds', 0,
        *('--min-rounds', 1, '--no-memory', '--checkpoint', file, 'none', '--dataset', config),
        *('--out', out, '--device', 'cpu', '--batch-size', 2),
    )  # fmt: skip
    assert code == 0, log
    rows = read(out, 'resolution_scaling')['results']
    assert [row['model'] for row in rows[:2]] == ['sized (classifier.pth)', THIN]
    assert [('top1' in row) for row in rows] == [True, False] * 2
    assert all(0 <= row['top1'] <= 100 for row in rows[::2])
    for row in rows:
        assert row['train_images_per_s'] == pytest.approx(1e3 / row['train_ms'], rel=1e-2)
        assert 'train_mib' not in row


@pytest.mark.parametrize(
    'args, message',
    [
        (('--dataset', '.'), '--dataset needs --checkpoint'),
        (('--checkpoint', 'a', 'b'), '--checkpoint must name one for each of the 1 models'),
        (
            ('--checkpoint', 'a', '--dataset', '.', '--sizes', '32x64'),
            "square --sizes, but got ['32x64']",
        ),
        (('--batch-size', '0'), '--batch-size must be at least 1'),
        ((THIN,), 'each model must be given once'),
    ],
)
def test_resolution_scaling_refuses(run_here, args, message):
    code, log = run_here('analysis_tools/resolution_scaling.py', THIN, *args)
    assert code == 2 and message in log and 'Traceback' not in log
