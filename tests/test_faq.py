"""Statements of docs/faq.md: its Python runs, and its table agrees with the code."""

import re
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from mmvmamba.models import MM_VSSM  # noqa: E402
from mmvmamba.ops import extension_error  # noqa: E402

TEXT = (Path(__file__).parents[1] / 'docs' / 'faq.md').read_text()


@pytest.mark.skipif(extension_error() is not None, reason='the op is not there')
def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r'^```python\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert names['reason'] == extension_error()
    said = re.search(r'# \.\.\. (.*), \.\.\.$', TEXT, re.MULTILINE)[1]
    assert said in names['message']
    assert names['scan'] > 0
    assert names['scores'].isfinite().all()


def arguments(text):
    """{'scan': ['cascade']} of "`scan='cascade'`", later ones without their name."""
    found, name = [], None
    for given, value in re.findall(r"`(?:(\w+)=)?('\w+'|True)`", text):
        name = given or name
        found.append((name, True if value == 'True' else value.strip("'")))
    return found


def test_table_of_forward_types():
    rows = re.findall(r'^\| (`?_?\w.*?) \| (.*) \|$', TEXT, re.MULTILINE)
    checked = set()
    for left, right in rows[1:]:
        parts = re.findall(r'`(\w+)`', left)
        if 'nothing' in left:
            parts = ['', *parts]
        if left.startswith('`v01'):
            parts = ['v01', 'v02', 'v03', 'v04', 'v05', 'v2', 'v3']
        values = arguments(right)
        for i, part in enumerate(parts):
            forward_type = part if re.match('v', part) else f'v05{part}'
            settings = MM_VSSM(dims=8, depths=(1, 1, 1, 1), forward_type=forward_type).settings
            # One value for each part, or all of them for all parts.
            each = len(values) == len(parts) and len({name for name, _ in values}) == 1
            for name, value in [values[i]] if each else values:
                assert getattr(settings, name) == value, forward_type
            checked.add(part)
    assert {'v01', 'v3', 'v052dc', '_noz'} <= checked
