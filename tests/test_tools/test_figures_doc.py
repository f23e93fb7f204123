"""docs/figures.md: its commands name models and tables that there are."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')

from mmvmamba.analysis.paper import ABLATIONS, IMAGENET  # noqa: E402
from mmvmamba.nn import ARCHS  # noqa: E402

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'docs/figures.md').read_text()
BLOCKS = re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace('\\\n', ' ').splitlines()]


def words_of(args):
    """The models that a command names."""
    for name in ('models', 'config', 'compare'):
        value = getattr(args, name, None)
        yield from value if isinstance(value, list) else [value] if value else []


def is_model(word):
    from mmpretrain import list_models

    target = re.sub(r'\+\w+=.*$', '', word)
    path = target.removeprefix('configs/').removeprefix('mmvmamba::')
    papers = {row.name for row in IMAGENET}
    return target in {*ARCHS, *papers, *list_models()} or (ROOT / 'configs' / path).is_file()


@pytest.mark.parametrize('command', COMMANDS)
def test_models_and_tables_of_a_command(command, monkeypatch):
    _, tool, *arguments = shlex.split(command, comments=True)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    args = runpy.run_path(str(ROOT / tool), run_name='tool')['parse_args']()
    assert [word for word in words_of(args) if not is_model(word)] == []
    assert set(getattr(args, 'tables', ())) <= set(ABLATIONS)


def test_every_tool_has_a_command():
    tools = {path.name for path in (ROOT / 'tools/analysis_tools').glob('*.py')}
    assert {Path(command.split()[1]).name for command in COMMANDS} == tools


def test_quoted_figures_are_the_papers():
    """The example of the steps repeats accuracy and throughput of the paper's table."""
    for row in ABLATIONS['steps']:
        (line,) = (text for text in TEXT.splitlines() if text.startswith(f'| {row.name} '))
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert cells[5:] == [f'{row.top1:.2f}', str(row.inference), str(row.train)]
