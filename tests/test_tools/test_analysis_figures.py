"""The tools that draw the paper's figures."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from mmvmamba.analysis import figures, measure
from mmvmamba.nn import VMambaNet

THIN = 'tiny+dims=(8,16,24,32)+depths=(1,1,1,1)'
HEAD = {'date', 'device', 'machine', 'versions', 'tool'}
TOOLS = Path(__file__).parents[2] / 'tools/analysis_tools'
#: What the paper's figures compare.
PAPERS = (
    'resnet50_8xb32_in1k',
    'convnext-tiny_32xb128_in1k',
    'swin-tiny_16xb64_in1k',
    'swin-tiny_16xb64_in1k+window_size=scaled',
    'deit-small_4xb256_in1k',
    'hivit-tiny-p16_16xb64_in1k',
    'mmvmamba::comparison/vim-s_8xb128_in1k.py',
    'tiny',
)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


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
    """The classes above under a name that a command could use."""
    monkeypatch.setitem(sys.modules, 'user_models', sys.modules[__name__])
    return 'user_models'


def functions_of(tool):
    return runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='tool')


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


def test_erf_with_every_option_at_its_default(run_here, tmp_path):
    """But for the size: the photographs are scikit-image's."""
    code, log = run_here('analysis_tools/erf.py', THIN, '--size', 64)
    assert code == 0, log
    numbers = read(tmp_path / 'work_dirs/erf.png', 'erf')
    assert numbers['images'] == 11 and len(numbers['results']) == 1


def test_erf_draws_one_model_with_several_checkpoints():
    """Which model a picture belongs to is its place in the command, not its name."""
    tool = functions_of('erf')
    panels = [
        tool['Panel'](place, 'one name', trained, 'epoch_1.pth' if trained else 'random', None)
        for place in range(6)
        for trained in (False, True)
        if not trained or place != 1
    ]
    grid = tool['grid_of'](panels)
    assert [[panel and (panel.place, panel.trained) for panel in row] for row in grid] == [
        [(0, False), (1, False), (2, False)],
        [(0, True), None, (2, True)],
        [(3, False), (4, False), (5, False)],
        [(3, True), (4, True), (5, True)],
    ]


@pytest.mark.parametrize(
    ('models', 'lines'), [(1, [1]), (5, [5]), (6, [3, 3]), (9, [5, 4]), (11, [4, 4, 3])]
)
def test_erf_has_lines_of_like_length(models, lines):
    tool = functions_of('erf')
    panels = [tool['Panel'](i, 'name', False, 'random', None) for i in range(models)]
    assert [len(row) for row in tool['grid_of'](panels)] == lines


@pytest.mark.slow
def test_erf_of_the_papers_models(run_here, data_root, tmp_path):
    out = tmp_path / 'erf.png'
    models = (*PAPERS, 'tiny+ssm_init=random', 'tiny+ssm_init=zero')
    options = ('--images', data_root / 'images', '--num-images', 1, '--size', 64)
    code, log = run_here('analysis_tools/erf.py', *models, *options, '--out', out)
    assert code == 0, log
    rows = read(out, 'erf')['results']
    assert [row['model'] for row in rows[:6]] == list(PAPERS[:6]) and len(rows) == len(models)


@pytest.mark.cuda
@GPU
def test_erf_on_a_gpu(run_here, data_root, tmp_path):
    fields = {}
    for device in ('cpu', 'cuda'):
        out = tmp_path / f'{device}.png'
        options = ('--images', data_root / 'images', '--size', 64, '--device', device)
        code, log = run_here('analysis_tools/erf.py', THIN, *options, '--out', out)
        assert code == 0, log
        fields[device] = read(out, 'erf')['results'][0]['radius_of_share']
    assert fields['cuda'] == pytest.approx(fields['cpu'], rel=0.05)


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


def activation_map(run_here, tmp_path, *args):
    """The numbers of a map of a photograph, or the exit status and the errors."""
    Image.new('RGB', (60, 40)).save(tmp_path / 'photo.png')
    command = ('analysis_tools/activation_map.py', tmp_path / 'photo.png')
    code, log = run_here(*command, *args, '--query', 0, 0)
    return read(tmp_path / 'work_dirs/activation_map.png', 'activation_map') if not code else log


def test_activation_map_without_its_rollout(run_here, tmp_path, monkeypatch):
    """Refused before it begins where its memory is not there; the query's own maps need little."""
    monkeypatch.setattr(measure, 'available_memory', lambda device: 2**20)
    args = (THIN, 'none', '--stage', 0, '--size', '64x96')
    log = activation_map(run_here, tmp_path, *args)
    assert 'the rollout of a map of 16x24 needs about 0.0 GiB' in log and '--no-rollout' in log
    (row,) = activation_map(run_here, tmp_path, *args, '--no-rollout')['results']
    for form in ('qk', 'decay'):
        assert set(row[form]) == {'path_order', 'image_order', 'summed'}


def test_activation_map_with_every_option_at_its_default(run_here, tmp_path):
    (row,) = activation_map(run_here, tmp_path, THIN, 'none')['results']
    assert row['shape'] == [14, 20] and 'rollout' in row['decay']


@pytest.mark.slow
def test_activation_map_of_the_papers_models(run_here, tmp_path):
    compare = ('--compare', 'deit-small_4xb256_in1k', '--size', 64, '--stage', 1)
    results = activation_map(run_here, tmp_path, 'tiny', 'none', *compare)['results']
    assert [row['shape'] for row in results] == [[8, 8], [4, 4]]


@pytest.mark.cuda
@GPU
def test_activation_map_on_a_gpu(run_here, tmp_path):
    compare = ('--compare', 'deit-small_4xb256_in1k', '--size', 64, '--device', 'cuda')
    results = activation_map(run_here, tmp_path, THIN, 'none', *compare)['results']
    assert torch.tensor(results[0]['decay']['rollout']).sum() == pytest.approx(1, abs=1e-4)


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


def test_checkpoints_of_one_name_are_told_apart(run_here, tmp_path):
    files = []
    for seed, folder in enumerate('ab'):
        torch.manual_seed(seed)
        net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
        files.append(tmp_path / folder / 'e.pth')
        files[-1].parent.mkdir()
        torch.save(dict(model=net.state_dict()), files[-1])
    rows = scaling(run_here, tmp_path, THIN, THIN, '--sizes', 32, '--modes', '--checkpoint', *files)
    assert [row['model'] for row in rows['results']] == [f'{THIN} (e.pth) #{i}' for i in (1, 2)]


def scaling(run_here, tmp_path, *args):
    """The numbers of a short measurement."""
    out = tmp_path / 'scaling.png'
    short = ('--seconds', 0, '--min-rounds', 1, '--batch-size', 2, '--device', 'cpu', '--no-memory')
    code, log = run_here('analysis_tools/resolution_scaling.py', *args, *short, '--out', out)
    assert code == 0, log
    return read(out, 'resolution_scaling')


def test_accuracy_is_that_before_the_steps_of_training(
    run_here, classification_config, importable, tmp_path
):
    config = tmp_path / 'sized.py'
    resize = "dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')"
    text = classification_config.read_text()
    config.write_text(text.replace("dict(type='PackInputs')", resize))
    net = Drifting()
    net.norm.running_mean.fill_(5)
    torch.save(dict(state_dict=net.state_dict()), tmp_path / 'net.pth')
    args = ('--checkpoint', tmp_path / 'net.pth', '--dataset', config, '--sizes', 32)
    rows = scaling(run_here, tmp_path, f'{importable}:Drifting', *args)['results']
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
    text = functions_of('resolution_scaling')['power_text']
    assert text(dict(p=1.5, sizes=['32', '64']), 3) == 'p = 1.50 (32, 64)'
    assert text(dict(p=1.5, sizes=['32', '64']), 2) == 'p = 1.50'


def test_resolution_scaling_shows_its_rounds(run_here, tmp_path, monkeypatch):
    tracked = []
    track = figures.track
    monkeypatch.setattr(figures, 'track', lambda items: tracked.append(len(items)) or track(items))
    scaling(run_here, tmp_path, THIN, '--sizes', 32, '--modes', 'inference', 'train')
    assert tracked == [1, 1] * 2  # for each mode the models, each tried, then the rounds


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
