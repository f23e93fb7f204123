"""Dependencies point one way: ops <- checkpoint <- nn <- models <- engine, analysis."""

import subprocess
import sys

import pytest

ORDER = ('mmvmamba.ops', 'mmvmamba.checkpoint', 'mmvmamba.nn', 'mmvmamba.models')
LATER = ('mmvmamba.engine', 'mmvmamba.analysis')


@pytest.mark.parametrize('name', ORDER)
def test_nothing_later_is_imported(name):
    later = (*ORDER[ORDER.index(name) + 1 :], *LATER)
    if name != ORDER[-1]:
        later += ('mmengine', 'mmcv')
    code = f'import sys, {name}; print([m for m in {later} if m in sys.modules])'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stdout + result.stderr


def test_the_triton_kernels_are_imported_when_they_run():
    """PyTorch's counter of FLOPs imports triton itself."""
    code = (
        'import sys, torch.utils.flop_counter; before = set(sys.modules); import mmvmamba.ops, '
        "mmvmamba.nn; print([m for m in set(sys.modules) - before if 'launch' in m "
        "or m.split('.')[0] == 'triton'])"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stdout + result.stderr
