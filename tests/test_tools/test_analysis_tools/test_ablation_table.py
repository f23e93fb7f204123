"""The tool that prints the paper's ablations; nothing here depends on how fast anything is."""

import pytest

pytest.importorskip('mmpretrain')

from .helpers import GPU, ONE_ROUND, SPEEDS, read  # noqa: E402

TOOL = 'analysis_tools/ablation_table.py'


def test_counts_without_timing(run_here, tmp_path):
    out = tmp_path / 'ablations.json'
    code, log = run_here(TOOL, 'init', 'init', '--modes', '--out', out, '--device', 'cpu')
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


@pytest.mark.slow
def test_every_option_at_its_default(run_here, tmp_path):
    """But for the size, and for one table."""
    code, log = run_here(TOOL, 'activation', '--size', 64)
    assert code == 0, log
    rows = read(tmp_path / 'work_dirs/ablations.json', 'ablation_table')['results']
    assert all(row[speed] > 0 for row in rows for speed in SPEEDS)


@pytest.mark.slow
def test_every_table(run_here, tmp_path):
    out = tmp_path / 'ablations.json'
    code, log = run_here(TOOL, *ONE_ROUND, '--device', 'cpu', '--out', out)
    assert code == 0, log
    rows = read(out, 'ablation_table')['results']
    assert len(rows) == 40 and all(row[speed] > 0 for row in rows for speed in SPEEDS)
    vanilla = [row for row in rows if row['name'][0] in 'vabc' and row['table'] == 'steps']
    assert len({row['inference_images_per_s'] for row in vanilla[:4]}) == 1


@pytest.mark.cuda
@GPU
def test_ablations_on_a_gpu(run_here, tmp_path):
    out = tmp_path / 'ablations.json'
    code, log = run_here(TOOL, 'init', *ONE_ROUND, '--device', 'cuda', '--out', out)
    assert code == 0, log
    data = read(out, 'ablation_table')
    assert data['device'] == 'cuda' and 'gpu' in data['machine']
    assert all(row[speed] > 0 for row in data['results'] for speed in SPEEDS)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('scans',), "TABLE must be one of ['scan',"),
        (('init', '--out', 'x.png'), '--out must end in .json'),
    ],
)
def test_refuses(run_here, args, message):
    code, log = run_here(TOOL, *args)
    assert code == 2 and message in log and 'Traceback' not in log
