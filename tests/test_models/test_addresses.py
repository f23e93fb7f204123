"""Names of checkpoints: paths, URLs, addresses, and slips."""

import subprocess
import sys
import textwrap

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from mmvmamba.engine.cli import check_checkpoint
from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba, loading
from mmvmamba.models.loading import read_checkpoint, use_safe_loader

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
LOADERS = (read_checkpoint, CheckpointLoader.load_checkpoint)


@pytest.fixture
def safe_loader(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loader()


class Opens:
    """A pickle of it would create a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


# ---- addresses ----


@pytest.mark.parametrize('address', ['file:///tmp/x.pth', 'gs://b/x.pth', 'htps://host/x.pth'])
def test_unknown_addresses_are_refused(address, safe_loader):
    words = f"'{address}' must be a path or begin with http://"
    for load in LOADERS:
        with pytest.raises(ValueError, match=words):
            load(address)
    with pytest.raises(UserError, match=words):
        check_checkpoint(Config(dict(load_from=address)), whole=False)


@pytest.mark.parametrize('address', ['s3://b/x.pth', 'petrel://b/x.pth', 'cluster:s3://b/x.pth'])
def test_what_comes_from_ceph_is_not_executed(address, safe_loader, monkeypatch, tmp_path):
    seen = []

    def get(uri, backend_args):
        seen.append((uri, backend_args['backend']))
        return path.read_bytes()

    path = tmp_path / 'x.pth'
    monkeypatch.setattr(loading.fileio, 'get', get)
    for load in LOADERS:
        torch.save({'state_dict': {'a': torch.ones(2)}}, path)
        assert torch.equal(load(address, 'cpu')['state_dict']['a'], torch.ones(2))
        torch.save({'extra': Opens(str(tmp_path / 'made'))}, path)
        with pytest.raises(ValueError, match=f'{address}.* needs .*open'):
            load(address, 'cpu')
    assert seen == [(address, 'petrel')] * 4
    assert not (tmp_path / 'made').exists()


def test_paths_may_be_paths(tmp_path):
    state = VMamba(THIN).state_dict()
    torch.save(state, tmp_path / 'x.pth')
    assert read_checkpoint(tmp_path / 'x.pth').keys() == state.keys()
    model = VMamba(THIN, init_cfg=dict(type='Pretrained', checkpoint=tmp_path / 'x.pth'))
    model.init_weights()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', [None, 3, b'x.pth'])
def test_what_is_no_path_is_refused(name):
    with pytest.raises(TypeError, match='checkpoint must be a path or a URL, but got'):
        read_checkpoint(name)


# ---- several processes ----

PROCESS = """
import datetime, sys, time
import torch
from mmvmamba.models.loading import read_checkpoint

rank, fails = int(sys.argv[1]), sys.argv[2] == 'fails'

def download(url, path, progress):
    assert rank == 0, 'a second download'
    if fails:
        raise OSError('no such host')
    time.sleep(0.5)  # a process that did not wait would download too
    torch.save({'a': torch.ones(1)}, path)

torch.hub.download_url_to_file = download
torch.distributed.init_process_group(
    'gloo',
    init_method='file://' + sys.argv[3],
    rank=rank,
    world_size=2,
    timeout=datetime.timedelta(seconds=240),
)
try:
    print('read', sorted(read_checkpoint('http://host.invalid/x.pth')))
except ValueError as error:
    print('refused', error)
"""


@pytest.mark.parametrize('outcome', ['works', 'fails'])
def test_one_process_downloads_and_all_know_how_it_went(outcome, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    command = [sys.executable, '-c', textwrap.dedent(PROCESS)]
    arguments = (outcome, str(tmp_path / 'store'))
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen([*command, str(r), *arguments], **streams) for r in (0, 1)]
    # Below the group's time limit: nobody waits for it.
    results = [process.communicate(timeout=300) for process in processes]
    words = "read ['a']" if outcome == 'works' else 'cannot be downloaded: no such host'
    for out, err in results:
        assert words in out, out + err[-2000:]


# ---- init_cfg ----


@pytest.mark.parametrize(
    ('init_cfg', 'error', 'words'),
    [
        ('x.pth', TypeError, "dict or a list of dict, but got 'x.pth'"),
        ([dict(type='Pretrained', checkpoint='x.pth'), 'y.pth'], TypeError, 'or a list of dict'),
        (dict(checkpoint='x.pth'), ValueError, "must have a type, e.g. 'Pretrained'"),
        (dict(type='Pretrained'), ValueError, 'must name a checkpoint'),
        (dict(type='Pretrained', checkpoint=None), TypeError, 'must be a path or a URL'),
        (dict(type='Pretrained', checkpoint='x', prefix=1), TypeError, 'prefix .* must be a str'),
    ],
)
def test_slips_in_init_cfg_are_named(init_cfg, error, words):
    with pytest.raises(error, match=words) as raised:
        VMamba(THIN, init_cfg=init_cfg)
    assert 'init_cfg' in str(raised.value)


def test_init_cfg_may_be_a_list(tmp_path):
    """As in MMEngine, files are loaded after everything else."""
    state = VMamba(THIN).state_dict()
    torch.save({k: v for k, v in state.items() if 'outnorm' not in k}, tmp_path / 'x.pth')
    model = VMamba(
        THIN,
        init_cfg=[
            dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')),
            dict(type='Constant', layer='LayerNorm', val=3.0, bias=4.0),
        ],
    )
    kind = type(model.outnorm0).__name__
    model.init_cfg[1]['layer'] = kind
    model.init_weights()
    new = model.state_dict()
    loaded = [k for k in state if 'outnorm' not in k]
    assert all(torch.equal(new[k], state[k]) for k in loaded)
    assert new['outnorm0.weight'].eq(3).all()
    assert new['outnorm0.bias'].eq(4).all()
    assert model.is_init
