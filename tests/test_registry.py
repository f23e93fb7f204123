"""The child registries, and the packages of bases in configs."""

from pathlib import Path

import mmengine
import mmengine.registry as root
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader

import mmvmamba
from mmvmamba import registry
from mmvmamba.models import VMamba

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
NAMES = (
    'MODELS',
    'FUNCTIONS',
    'HOOKS',
    'STRATEGIES',
    'TRANSFORMS',
    'VISUALIZERS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'PARAM_SCHEDULERS',
)


@pytest.mark.parametrize('name', NAMES)
def test_child_of_the_root_registry(name):
    parent, child = getattr(root, name), getattr(registry, name)
    assert child.parent is parent and parent.children['mmvmamba'] is child
    assert (child.scope, child.name) == ('mmvmamba', parent.name)


@pytest.mark.parametrize(
    ('name', 'type_name'),
    [
        ('MODELS', 'VMamba'),
        ('MODELS', 'MM_VSSM'),
        ('MODELS', 'Vim'),
        ('MODELS', 'S4NDConvNeXt'),
        ('HOOKS', 'ResumeHook'),
        ('OPTIM_WRAPPERS', 'CPUAmpOptimWrapper'),
        ('OPTIM_WRAPPER_CONSTRUCTORS', 'LayerDecayOptimWrapperConstructor'),
    ],
)
def test_types_resolve_from_the_root(name, type_name):
    found = getattr(root, name).get(f'mmvmamba.{type_name}')
    assert found.__name__ == type_name and found.__module__.startswith('mmvmamba.')


@pytest.mark.parametrize('name', ['mmvmamba.VMamba', 'VMamba'])
def test_builds(name):
    assert isinstance(registry.MODELS.build(dict(type=name, arch=THIN)), VMamba)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_builds_in_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(root.MODELS.build(dict(type='mmvmamba.VMamba', arch=THIN)), VMamba)


@pytest.mark.parametrize(
    ('package', 'base'),
    [
        ('mmseg', 'mmseg::_base_/schedules/schedule_20k.py'),
        ('mmvmamba', 'mmvmamba::retinanet/retinanet_vmamba-t_fpn_1x_coco.py'),
    ],
)
def test_bases_resolve(package, base, monkeypatch, tmp_path):
    pytest.importorskip(package)
    if package == 'mmvmamba' and not (Path(mmvmamba.__file__).parent / '.mim').exists():
        pytest.skip('mmvmamba is used from its source folder, not installed')
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.delitem(MODULE2PACKAGE, 'mmvmamba')
    registry.register_config_packages()
    (tmp_path / 'own.py').write_text(f"_base_ = '{base}'")
    assert Config.fromfile(tmp_path / 'own.py').optim_wrapper.optimizer


# ---- checkpoints that MMEngine does not read ----


@pytest.fixture
def schemes(monkeypatch):
    """Loaders of MMEngine, with those of this package."""
    stock = dict.fromkeys(('', 'http://', 'https://', 'torchvision://', registry.CEPH[0]), open)
    monkeypatch.setattr(CheckpointLoader, '_schemes', stock)
    registry.replace_checkpoint_reader()


@pytest.mark.parametrize(
    'name', ['x.safetensors', 'http://a.b/x.safetensors', 'https://a.b/x.safetensors?token=1']
)
def test_mmengine_reads_safetensors_with_our_reader(name, schemes):
    assert CheckpointLoader._get_checkpoint_loader(name) is registry.load_from_local


@pytest.mark.parametrize('name', ['http://a.b/x.pth', 'torchvision://x.safetensors'])
def test_mmengine_reads_other_addresses_itself(name, schemes):
    assert CheckpointLoader._get_checkpoint_loader(name) is open


@pytest.mark.parametrize('version', ['0.10.7', '0.10.12'])
def test_old_mmengine_reads_its_checkpoints(monkeypatch, tmp_path, version):
    """A detector of other networks reads its file before anything of `mmvmamba.models` is used."""
    stock = {'': lambda filename, map_location: 'read by MMEngine'}
    monkeypatch.setattr(CheckpointLoader, '_schemes', stock)
    monkeypatch.setattr(mmengine, '__version__', version)
    registry.replace_checkpoint_reader()
    saved = {'message_hub': HistoryBuffer([1.0], [1])}
    torch.save(saved, tmp_path / 'x.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    if version == '0.10.7':
        assert loaded['message_hub'].current() == 1.0
    else:
        assert loaded == 'read by MMEngine'
