"""Measurement of the paper's tables; nothing here depends on speed."""

import pytest

pytest.importorskip('mmpretrain')

from ...analysis_tools import load  # noqa: E402
from .helpers import GPU, ONE_ROUND, SPEEDS, THIN, read  # noqa: E402

TOOL = 'analysis_tools/compare_throughput.py'
TABLES = load('paper').TABLES
#: The models of the paper's table, but for the larger ones.
PAPERS = ('Swin-T', 'ConvNeXt-T', 'DeiT-S', 'HiViT-T', 'XCiT-S24', 'Vim-S', 'S4ND-ConvNeXt-T')


def test_throughput_of_the_papers_models_and_others(run_here, tmp_path):
    out = tmp_path / 'new' / 'speed.png'
    models = ('hivit-t', THIN, 'torch.nn:AvgPool2d+kernel_size=4')
    code, log = run_here(
        TOOL,
        *models,
        *ONE_ROUND,
        *('--device', 'cpu', '--out', out, '--modes', 'inference'),
    )
    assert code == 0, log
    assert 'init_weights' not in log  # as MMEngine logs of each parameter
    data = read(out, 'compare_throughput')
    hivit, thin, pool = data['results']
    assert (hivit['name'], hivit['paper_inference'], hivit['paper_train']) == (
        'HiViT-T',
        1393,
        None,
    )
    assert (thin['name'], thin['paper_inference'], thin['top1']) == (THIN, None, None)
    assert 19e6 < hivit['params'] < 20e6 and thin['params'] < 1e6 and pool['params'] == 0
    for row in data['results']:
        assert row['inference_images_per_s'] > 0 and 'train_images_per_s' not in row
    assert data['settings'] == dict(
        size='64',
        batch_size=1,
        amp=True,
        compile=False,
        channels_last=True,
        tf32=True,
        seconds=0,
        min_rounds=1,
    )


def test_training_in_float32(run_here, tmp_path):
    out = tmp_path / 'speed.png'
    options = ('--no-amp', '--no-channels-last', '--no-tf32', '--out', out)
    code, log = run_here(TOOL, THIN, *ONE_ROUND, '--device', 'cpu', *options)
    assert code == 0, log
    data = read(out, 'compare_throughput')
    assert all(data['results'][0][speed] > 0 for speed in SPEEDS)
    settings = data['settings']
    assert not any(settings[key] for key in ('amp', 'channels_last', 'tf32', 'compile'))


def test_results_on_other_data_are_quoted(run_here, tmp_path):
    out = tmp_path / 'speed.png'
    options = ('--modes', '--size', 64, '--out', out)
    code, log = run_here(TOOL, 'Swin-T', THIN, *options)
    assert code == 0, log
    swin, thin = read(out, 'compare_throughput')['results']
    assert (swin['box_ap'], swin['miou']) == (42.7, 44.4)
    assert (thin['box_ap'], thin['miou']) == (None, None)


def test_counts_without_timing(run_here, tmp_path):
    out = tmp_path / 'speed.png'
    models = ('init', 'init', THIN)
    code, log = run_here(TOOL, *models, '--modes', '--out', out, '--device', 'cpu')
    assert code == 0, log
    *rows, thin = read(out, 'compare_throughput')['results']
    assert [(row['name'], row['top1']) for row in rows] == [
        ('mamba', 82.60),
        ('random', 82.58),
        ('zero', 82.67),
    ]
    for row in rows:
        assert (row['params'], row['flops']) == (30_249_064, 4_905_609_984)
        assert row['table'] == 'init' and not set(SPEEDS) & set(row)
    assert (thin['table'], thin['name']) == ('models', THIN)


@pytest.mark.slow
def test_every_option_at_its_default(run_here, tmp_path):
    """But for the size."""
    code, log = run_here(TOOL, THIN, '--size', 64)
    assert code == 0, log
    rows = read(tmp_path / 'work_dirs/throughput.png', 'compare_throughput')['results']
    assert all(row[speed] > 0 for row in rows for speed in SPEEDS)


@pytest.mark.slow
def test_throughput_of_the_papers_models(run_here, tmp_path):
    out = tmp_path / 'speed.png'
    models = (*PAPERS, 'resnet50_8xb32_in1k')
    code, log = run_here(TOOL, *models, *ONE_ROUND, '--device', 'cpu', '--out', out)
    assert code == 0, log
    rows = read(out, 'compare_throughput')['results']
    assert [row['name'] for row in rows] == list(models)
    assert all(row[speed] > 0 for row in rows for speed in SPEEDS)


@pytest.mark.slow
def test_every_table(run_here, tmp_path):
    out = tmp_path / 'speed.png'
    tables = [table for table in TABLES if table != 'imagenet']
    code, log = run_here(TOOL, *tables, *ONE_ROUND, '--device', 'cpu', '--out', out)
    assert code == 0, log
    rows = read(out, 'compare_throughput')['results']
    assert len(rows) == 40 and all(row[speed] > 0 for row in rows for speed in SPEEDS)
    vanilla = [row for row in rows if row['name'][0] in 'vabc' and row['table'] == 'steps']
    assert len({row['inference_images_per_s'] for row in vanilla[:4]}) == 1


@pytest.mark.cuda
@GPU
def test_throughput_on_a_gpu(run_here, tmp_path):
    out = tmp_path / 'speed.png'
    code, log = run_here(TOOL, THIN, 'DeiT-S', 'init', *ONE_ROUND, '--device', 'cuda', '--out', out)
    assert code == 0, log
    data = read(out, 'compare_throughput')
    assert data['device'] == 'cuda' and 'gpu' in data['machine']
    assert all(row[speed] > 0 for row in data['results'] for speed in SPEEDS)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('Swim-T',), "model 'Swim-T' is not an architecture"),
        (('tiny', '--batch-size', '0'), '--batch-size: must be an integer of at least 1'),
        (('tiny', '--device', 'abacus'), "--device 'abacus' cannot be used"),
        (('init', '--out', 'x.json'), 'argument --out: must end in .png'),
    ],
)
def test_refuses(run_here, args, message):
    code, log = run_here(TOOL, *args)
    assert code == 2 and message in log and 'Traceback' not in log
