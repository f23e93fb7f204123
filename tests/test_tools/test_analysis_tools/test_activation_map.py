"""Pictures of activation maps."""

import pytest
import torch
from PIL import Image

from .helpers import GPU, THIN, read


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


def test_activation_map_without_its_rollout(run_here, tmp_path):
    args = (THIN, 'none', '--stage', 0, '--size', '64x96', '--no-rollout')
    (row,) = activation_map(run_here, tmp_path, *args)['results']
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
