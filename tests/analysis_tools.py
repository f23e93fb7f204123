"""The modules in tools/analysis_tools, imported as its tools import them."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / 'tools/analysis_tools'


def load(name):
    """A tool, or a module that the tools share, without running it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        return importlib.import_module(name)
