"""demo/tutorial.ipynb runs from top to bottom."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')
pytest.importorskip('skimage')
pytest.importorskip('matplotlib')

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / 'demo' / 'tutorial.ipynb'


def texts(cell):
    return ''.join(output.get('text', '') for output in cell.get('outputs', ()))


def pictures(cell):
    return [output for output in cell.get('outputs', ()) if 'image/jpeg' in output.get('data', {})]


def test_tutorial(tmp_path, monkeypatch):
    """It learns, and has the outputs that are committed with it."""
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    committed = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.from_dict(committed)
    resources = {'metadata': {'path': str(tmp_path / 'demo')}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    text = ''.join(map(texts, notebook.cells))
    before, after = (
        float(text.split(f'accuracy {when} training: ')[1].split()[0])
        for when in ('before', 'after')
    )
    assert after >= max(0.8, before)
    assert "['cat', 'coin'] True" in text or "('cat', 'coin') True" in text
    for old, new in zip(committed.cells, notebook.cells, strict=True):
        assert bool(texts(old)) == bool(texts(new)) and len(pictures(old)) == len(pictures(new))
    assert sum(map(len, map(pictures, notebook.cells))) == 5


def test_committed_file():
    committed = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    assert NOTEBOOK.stat().st_size < 300_000
    code = [cell for cell in committed.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    links = [
        word
        for c in committed.cells
        if c.cell_type == 'markdown'
        for word in c.source.split('](')[1:]
    ]
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link.partition(')')[0]).is_file(), link
