"""The URLs of the released classifiers, and what to do without a network."""

import re
from pathlib import Path

import pytest
import yaml

from mmvmamba.checkpoint import released
from mmvmamba.checkpoint.download import cached_path
from mmvmamba.checkpoint.released import RELEASED_URLS, released_file, released_name
from mmvmamba.nn import ARCHS

from ..servers import response, serve

ROOT = Path(__file__).parents[2]


def test_urls_are_those_of_the_configs():
    models = yaml.safe_load((ROOT / 'configs/vmamba/metafile.yml').read_text())['Models']
    assert {model['Weights'] for model in models} == set(RELEASED_URLS.values())


def test_every_architecture_has_a_file_of_its_own():
    assert RELEASED_URLS.keys() == ARCHS.keys()
    for a, arch in ARCHS.items():
        for b, other in ARCHS.items():
            assert (RELEASED_URLS[a] == RELEASED_URLS[b]) == (arch == other), (a, b)


def test_names():
    assert released_name('tiny') == 'vssm1_tiny_0230s_ckpt_epoch_264.pth'


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with serve(response(b'content')) as server:
        url = f'http://{server.address}/%23v2cls/tiny.pth'
        monkeypatch.setitem(released.RELEASED_URLS, 'tiny', url)
        yield server


def test_download(server, tmp_path):
    path = released_file('tiny')
    assert Path(path).read_bytes() == b'content'
    assert path == released_file('tiny') == cached_path(RELEASED_URLS['tiny'])
    assert len(server.requests) == 1


def test_a_file_that_the_user_has_put_there(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setitem(released.RELEASED_URLS, 'tiny', 'http://127.0.0.1:1/%23v2cls/tiny.pth')
    path = tmp_path / 'hub' / 'checkpoints' / 'tiny.pth'
    words = re.escape(f'another machine and save it here as {str(path)!r}')
    with pytest.raises(ValueError, match=f"{re.escape(RELEASED_URLS['tiny'])}' cannot .*{words}"):
        released_file('tiny')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'own')
    assert released_file('tiny') == str(path)
