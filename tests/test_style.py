"""Rules of style that no linter has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Openings of a summary that is neither imperative nor a noun phrase.
OPENINGS = re.compile(r'(What|Whether)\b|The [^.]*\bthat\b')
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def summaries(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text.split('\n\n')[0].replace('\n', ' ')


@pytest.mark.parametrize('folder', ['mmvmamba', 'tools', 'demo', 'benchmarks', 'tests'])
def test_summaries_are_imperative_or_a_noun_phrase(folder):
    paths = sorted((ROOT / folder).rglob('*.py'))
    found = {
        (path.name, text) for path in paths for text in summaries(path) if OPENINGS.match(text)
    }
    assert paths and not found


def test_every_module_has_its_test_file():
    lacking = []
    for path in (ROOT / 'mmvmamba').rglob('*.py'):
        parts = path.relative_to(ROOT / 'mmvmamba').parts
        if path.name.startswith('_') or '.mim' in parts or len(parts) == 1:
            continue
        folders = [f'test_{part}' for part in parts[:-1]]
        if not ROOT.joinpath('tests', *folders, f'test_{path.name}').is_file():
            lacking.append('/'.join(parts))
    assert not lacking


def test_no_private_name_crosses_a_package():
    found = []
    for path in [
        p for f in ('mmvmamba', 'tools', 'demo', 'benchmarks') for p in (ROOT / f).rglob('*.py')
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmvmamba'):
                names = [*node.module.split('.'), *(alias.name for alias in node.names)]
                found += [f'{path.name}: {n}' for n in names if re.match('_[^_]', n)]
    assert not found
