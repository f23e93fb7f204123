"""The tools that print the paper's tables; nothing here depends on how fast anything is."""

import csv
import json

import pytest
import torch
from PIL import Image

THIN = 'tiny+dims=(8,16,24,32)+depths=(1,1,1,1)'
ONE_ROUND = (
    '--seconds',
    0,
    '--min-rounds',
    1,
    '--batch-size',
    1,
    '--size',
    '64',
    '--device',
    'cpu',
)
#: What the paper's table compares, but for the larger ones.
PAPERS = ('Swin-T', 'ConvNeXt-T', 'DeiT-S', 'HiViT-T', 'XCiT-S24', 'Vim-S', 'S4ND-ConvNeXt-T')
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
SPEEDS = ('inference_images_per_s', 'train_images_per_s')


def read(out, tool):
    data = json.loads(out.read_text())
    assert {'date', 'device', 'machine', 'versions'} <= set(data) and data['tool'] == tool
    with out.with_suffix('.csv').open(newline='') as file:
        table = list(csv.DictReader(file))
    assert [row['name'] for row in table] == [row['name'] for row in data['results']]
    assert set(table[0]) == set(data['results'][0])
    with Image.open(out.with_suffix('.png')) as image:
        assert image.format == 'PNG' and len(image.convert('RGB').getcolors(2**24)) > 20
    return data


def test_throughput_of_the_papers_models_and_others(run_here, tmp_path, capfd):
    out = tmp_path / 'new' / 'speed.json'
    models = ('hivit-t', THIN, 'torch.nn:AvgPool2d+kernel_size=4')
    code, log = run_here(
        'analysis_tools/compare_throughput.py',
        *models,
        *ONE_ROUND,
        '--out',
        out,
        '--modes',
        'inference',
    )
    assert code == 0, log
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
        size='64', batch_size=1, amp=True, compile=False, channels_last=True, tf32=True
    )


def test_training_in_float32(run_here, tmp_path):
    out = tmp_path / 'speed.json'
    options = ('--no-amp', '--no-channels-last', '--no-tf32', '--out', out)
    code, log = run_here('analysis_tools/compare_throughput.py', THIN, *ONE_ROUND, *options)
    assert code == 0, log
    data = read(out, 'compare_throughput')
    assert all(data['results'][0][speed] > 0 for speed in SPEEDS)
    settings = data['settings']
    assert not any(settings[key] for key in ('amp', 'channels_last', 'tf32', 'compile'))


def test_ablation_table_counts_without_timing(run_here, tmp_path, capfd):
    out = tmp_path / 'ablations.json'
    code, log = run_here(
        'analysis_tools/ablation_table.py',
        'init',
        'init',
        '--modes',
        '--out',
        out,
        '--device',
        'cpu',
    )
    assert code == 0, log
    rows = read(out, 'ablation_table')['results']
    assert [(row['name'], row['top1']) for row in rows] == [
        ('mamba', 82.60),
        ('random', 82.58),
        ('zero', 82.67),
    ]
    for row in rows:
        assert (row['params'], row['flops']) == (30_249_064, 4_905_609_984)
        assert row['table'] == 'init' and not set(SPEEDS) & set(row)


def test_results_on_other_data_are_quoted_where_asked(run_here, tmp_path):
    out = tmp_path / 'speed.json'
    options = ('--downstream', '--modes', '--size', 64, '--out', out)
    code, log = run_here('analysis_tools/compare_throughput.py', 'Swin-T', THIN, *options)
    assert code == 0, log
    swin, thin = read(out, 'compare_throughput')['results']
    assert (swin['box_ap'], swin['miou']) == (42.7, 44.4)
    assert (thin['box_ap'], thin['miou']) == (None, None)


@pytest.mark.slow
def test_every_option_at_its_default(run_here, tmp_path):
    """But for the size, and for one table."""
    for tool, name, args in (
        ('compare_throughput', 'throughput', (THIN,)),
        ('ablation_table', 'ablations', ('activation',)),
    ):
        code, log = run_here(f'analysis_tools/{tool}.py', *args, '--size', 64)
        assert code == 0, log
        rows = read(tmp_path / f'work_dirs/{name}.json', tool)['results']
        assert all(row[speed] > 0 for row in rows for speed in SPEEDS)


@pytest.mark.slow
def test_throughput_of_the_papers_models(run_here, tmp_path):
    out = tmp_path / 'speed.json'
    models = (*PAPERS, 'resnet50_8xb32_in1k')
    code, log = run_here('analysis_tools/compare_throughput.py', *models, *ONE_ROUND, '--out', out)
    assert code == 0, log
    rows = read(out, 'compare_throughput')['results']
    assert [row['name'] for row in rows] == list(models)
    assert all(row[speed] > 0 for row in rows for speed in SPEEDS)


@pytest.mark.cuda
@GPU
@pytest.mark.parametrize(
    ('tool', 'args'), [('compare_throughput', (THIN, 'DeiT-S')), ('ablation_table', ('init',))]
)
def test_tables_on_a_gpu(run_here, tmp_path, tool, args):
    out = tmp_path / 'speed.json'
    options = (*ONE_ROUND[:-1], 'cuda', '--out', out)
    code, log = run_here(f'analysis_tools/{tool}.py', *args, *options)
    assert code == 0, log
    data = read(out, tool)
    assert data['device'] == 'cuda' and 'gpu' in data['machine']
    assert all(row[speed] > 0 for row in data['results'] for speed in SPEEDS)


@pytest.mark.slow
def test_every_table_of_the_ablations(run_here, tmp_path):
    out = tmp_path / 'ablations.json'
    options = ('--size', '64', '--batch-size', 1, '--seconds', 0, '--min-rounds', 1)
    code, log = run_here(
        'analysis_tools/ablation_table.py', *options, '--device', 'cpu', '--out', out
    )
    assert code == 0, log
    rows = read(out, 'ablation_table')['results']
    assert len(rows) == 40 and all(row[speed] > 0 for row in rows for speed in SPEEDS)
    vanilla = [row for row in rows if row['name'][0] in 'vabc' and row['table'] == 'steps']
    assert len({row['inference_images_per_s'] for row in vanilla[:4]}) == 1


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('ablation_table', ('scans',), "TABLE must be one of ['scan',"),
        ('ablation_table', ('init', '--out', 'x.png'), '--out must end in .json'),
        ('compare_throughput', ('Swim-T',), "model 'Swim-T' is no architecture of ours"),
        ('compare_throughput', ('tiny', '--batch-size', '0'), '--batch-size must be at least 1'),
        ('compare_throughput', ('tiny', '--device', 'abacus'), "--device 'abacus' cannot be used"),
    ],
)
def test_refuses(run_here, tool, args, message):
    code, log = run_here(f'analysis_tools/{tool}.py', *args)
    assert code == 2 and message in log and 'Traceback' not in log
