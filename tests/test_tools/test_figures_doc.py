"""docs/figures.md: its commands name known models, and its plots show the paper's numbers."""

import json
import re
import runpy
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmvmamba.nn import ARCHS  # noqa: E402

from ..analysis_tools import load  # noqa: E402

paper = load('paper')

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'docs/figures.md').read_text()
BLOCKS = re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace('\\\n', ' ').splitlines()]


def words_of(args):
    """Models in a command."""
    for name in ('models', 'config', 'compare'):
        value = getattr(args, name, None)
        yield from value if isinstance(value, list) else [value] if value else []


def is_model(word):
    from mmpretrain import list_models

    target = re.sub(r'\+\w+=.*$', '', word)
    path = target.removeprefix('configs/').removeprefix('mmvmamba::')
    papers = {row.name for row in paper.TABLES['imagenet']}
    known = {*ARCHS, *papers, *paper.TABLES, *list_models()}
    return target in known or (ROOT / 'configs' / path).is_file()


@pytest.mark.parametrize('command', COMMANDS)
def test_models_and_tables_of_a_command(command, monkeypatch):
    _, tool, *arguments = shlex.split(command, comments=True)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    args = load(Path(tool).stem).parse_args()
    assert [word for word in words_of(args) if not is_model(word)] == []


def trained_models():
    """The options of each training in docs/analysis.md, and what the picture's command calls it."""
    text = (ROOT / 'docs/analysis.md').read_text().replace('\\\n', ' ')
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith('python tools/')]
    (erf,) = (line for line in lines if 'ResNet-50' in line)
    options = {name: erf.index(name) for name in ('--checkpoint', '--trained')}
    words = erf[2 : options['--checkpoint']]
    files = erf[options['--checkpoint'] + 1 : options['--trained']]
    trained = {f'{Path(file).parent}': word for word, file in zip(words, files, strict=True)}
    for line in lines:
        if line[1] == 'tools/train.py':
            name = line[line.index('--work-dir') + 1]
            yield pytest.param(line, trained.pop(name), id=Path(name).name)
    assert not trained


@pytest.mark.parametrize(('command', 'word'), list(trained_models()))
def test_weights_of_the_demo_training_fit_the_picture(command, word, monkeypatch, tmp_path):
    from mmengine.config import Config

    from mmvmamba.analysis.model_flops import build_model

    monkeypatch.setattr(sys, 'argv', command[1:])
    monkeypatch.chdir(ROOT)
    args = runpy.run_path(str(ROOT / command[1]), run_name='tool')['parse_args']()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    model = build_model(cfg).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64), mode='tensor').shape == (1, 6)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_2.pth')
        file = str(tmp_path / 'epoch_2.pth')
        loaded = load('analysis_model').load_model(word, file, to_map=True, size=(96, 96))
        assert loaded(torch.rand(1, 3, 96, 96)).dim() == 4


def test_every_tool_has_a_command():
    scripts = (ROOT / 'tools/analysis_tools').glob('*.py')
    tools = {path.name for path in scripts if "__name__ == '__main__'" in path.read_text()}
    documented = {Path(command.split()[1]).name for command in COMMANDS}
    assert documented == tools - {'compare_runs.py'}  # of one's own runs, in docs/tools.md


@pytest.mark.parametrize('name', ['throughput', 'ablations'])
def test_plotted_numbers_are_the_papers(name):
    """The numbers behind the plots of the page are those of the tables."""
    rows = json.loads((ROOT / f'docs/images/{name}.json').read_text())['results']
    assert rows
    for row in rows:
        (quoted,) = (asdict(r) for r in paper.TABLES[row['table']] if r.name == row['name'])
        assert quoted == {key: row[key] for key in quoted}
