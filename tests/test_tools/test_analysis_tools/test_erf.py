"""Pictures of effective receptive fields."""

import pytest

pytest.importorskip('mmpretrain')

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from mmvmamba.analysis.erf import ReceptiveField  # noqa: E402

from ...analysis_tools import load  # noqa: E402
from .helpers import GPU, PAPERS, THIN, read  # noqa: E402

erf, figures = load('erf'), load('figures')


def test_images_come_from_all_classes(tmp_path):
    for name in 'abcd':
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new('RGB', (1, 1)).save(tmp_path / name / f'{i}.png')
    (tmp_path / 'a' / 'notes.txt').write_text('no image')
    found = [path.relative_to(tmp_path).as_posix() for path in erf.find_images(tmp_path, 4)]
    assert found == ['a/0.png', 'b/0.png', 'c/0.png', 'd/0.png']
    assert len(set(erf.find_images(tmp_path, 5))) == 5
    assert len(erf.find_images(tmp_path, 50)) == 12


def test_the_samples_are_photographs():
    pytest.importorskip('skimage')
    paths = erf.find_images(None, 50)
    assert len(paths) == len(erf.PHOTOGRAPHS) == len(set(paths))
    for path in paths:
        image = figures.read_image(path)
        assert min(image.size) >= 300 and len(image.getcolors(2**24)) > 100, path
    assert erf.find_images(None, 2) == paths[:2]


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


def grid_of(models):
    """The titles of the drawn panels, by their place in the figure."""
    figure = erf.draw([[panel(*words) for words in model] for model in models])
    grid = {}
    for ax in figure.axes:
        place = ax.get_subplotspec()
        if place and ax.axison:  # not the color bar
            grid[place.rowspan.start, place.colspan.start] = ax.get_title().replace('\n', ' ')
    return grid


def panel(*words):
    return erf.Panel(*words, ReceptiveField(torch.ones(4, 4)))


def test_erf_draws_trained_models_below_untrained_ones():
    """Also one model with several checkpoints."""
    models = [[('net', 'random'), ('net', f'epoch_{i}')] for i in range(6)]
    models[1].pop()
    assert grid_of(models) == {
        **{(0, i): 'net random' for i in range(3)},
        **{(1, i): f'net epoch_{i}' for i in (0, 2)},
        **{(2, i): 'net random' for i in range(3)},
        **{(3, i): f'net epoch_{i + 3}' for i in range(3)},
    }


@pytest.mark.parametrize(
    ('models', 'lines'), [(1, [1]), (5, [5]), (6, [3, 3]), (9, [5, 4]), (11, [4, 4, 3])]
)
def test_erf_has_lines_of_like_length(models, lines):
    grid = grid_of([[(str(i), 'random')] for i in range(models)])
    assert grid == {
        (row, column): f'{sum(lines[:row]) + column} random'
        for row, length in enumerate(lines)
        for column in range(length)
    }


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
        (('tiny', '--checkpoint', 'a', 'b'), '--checkpoint must have a value for each of 1 models'),
        (('tiny', '--images', 'nowhere'), ".webp files, but got 'nowhere'"),
        (('tiny', '--num-images', '0'), '--num-images: must be an integer of at least 1'),
        (('tiny', '--out', 'erf.jpg'), 'argument --out: must end in .png'),
        (('tiny', '--device', 'abacus'), "--device 'abacus' cannot be used"),
        (
            ('nothing', '--num-images', '1', '--size', '64'),
            "model 'nothing' is not an architecture",
        ),
    ],
)
def test_erf_refuses(run_here, args, message):
    code, log = run_here('analysis_tools/erf.py', *args)
    assert code == 2 and message in log and 'Traceback' not in log
