"""Methods of huggingface_hub's models without huggingface_hub, and wrong names of folders."""

import subprocess
import sys

import pytest

from mmvmamba.nn import VMambaNet

pytest.importorskip('safetensors')

from mmvmamba.hub import write_folder  # noqa: E402

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
WITHOUT = """
import sys
sys.modules['huggingface_hub'] = None
import mmvmamba
from mmvmamba.nn import VMambaNet
net = VMambaNet.from_pretrained({folder!r})
net = mmvmamba.create_model('vmamba_tiny', 'local-dir:' + {folder!r})
calls = [
    lambda: net.save_pretrained('x'),
    lambda: net.push_to_hub('a/b'),
    lambda: VMambaNet.from_pretrained('a/b'),
    lambda: mmvmamba.create_model('vmamba_tiny', 'hf-hub:a/b'),
]
for call in calls:
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_without_huggingface_hub(tmp_path):
    write_folder(VMambaNet('tiny', **THIN), tmp_path)
    code = WITHOUT.format(folder=str(tmp_path))
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    end = 'requires huggingface_hub, which is not installed: pip install '
    end += 'huggingface_hub safetensors'
    starts = ['save_pretrained', 'push_to_hub', 'from_pretrained', 'from_pretrained']
    assert lines == [f'{start} {end}' for start in starts], result.stderr


def test_imported_when_it_is_needed():
    code = (
        'import sys, mmvmamba.nn, mmvmamba.hub; '
        "print([m for m in ('huggingface_hub', 'safetensors', 'timm') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stdout + result.stderr


def test_names_of_timm(tmp_path):
    write_folder(VMambaNet('tiny', num_classes=3, **THIN), tmp_path)
    assert VMambaNet.from_pretrained(f'local-dir:{tmp_path}').num_classes == 3


@pytest.mark.parametrize(
    'name',
    [
        'local-dir:none',
        'local-dir:~/none',
        './none',
        '/none/x',
        'a/b/c',
        '~/none',
        '..',
        'none/',
        '',
    ],
)
def test_folders_that_do_not_exist(name):
    with pytest.raises(FileNotFoundError, match=r"folder '.*' does not exist|has no config.json"):
        VMambaNet.from_pretrained(name)


def test_paths_are_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder '.*none' does not exist"):
        VMambaNet.from_pretrained(tmp_path / 'none')
    with pytest.raises(TypeError):
        VMambaNet.from_pretrained(3)
