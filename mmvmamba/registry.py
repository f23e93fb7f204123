"""Child registries of MMEngine's, so that ``type='mmvmamba.X'`` resolves in any config."""

import importlib.util
from typing import Any

import mmengine
import mmengine.registry as root
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.utils import digit_version

#: Addresses of Ceph in MMEngine, which may begin with the name of a cluster.
CEPH = (r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


def _child(parent: Registry, location: str = 'mmvmamba.engine') -> Registry:
    return Registry(parent.name, parent=parent, scope='mmvmamba', locations=[location])


MODELS = _child(root.MODELS, 'mmvmamba.models')
FUNCTIONS = _child(root.FUNCTIONS)
HOOKS = _child(root.HOOKS)
STRATEGIES = _child(root.STRATEGIES)
TRANSFORMS = _child(root.TRANSFORMS)
VISUALIZERS = _child(root.VISUALIZERS)
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS)
#: Empty. Without it MMEngine warns about the scope of schedules in a ``mmvmamba::`` base.
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS)


def register_config_packages() -> None:
    """Make ``mmseg::`` and ``mmvmamba::`` bases resolve in configs that are read afterwards.

    MMEngine looks up the distribution of a base's package in a table, and falls back to importing
    a module by that name. The table has the open-mmlab distribution of mmseg, which the maintained
    forks do not provide, so mmseg is found by its import name. For this package a module is named,
    because mmengine 0.10.7 expects the code of a distribution next to its metadata, which is wrong
    for an editable installation.
    """
    MODULE2PACKAGE['mmvmamba'] = __name__
    if importlib.util.find_spec('mmseg') is not None:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint for MMEngine, whose log names the backend by the end of this name."""
    from .models.loading import read_checkpoint  # which needs the registries

    return read_checkpoint(filename, map_location)


def replace_checkpoint_reader() -> None:
    """Make MMEngine read files that it does not read itself with this package's reader.

    These are safetensors files and, up to mmengine 0.10.7, all local files: it leaves
    ``weights_only`` to :func:`torch.load`, which refuses its checkpoints since torch 2.6. MMEngine
    unpickles what a URL returns, which stays as it is without
    :func:`mmvmamba.models.loading.use_safe_loader`.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    schemes: tuple[str, ...] = (r'.*\.safetensors$', r'https?://.*\.safetensors(\?.*)?$')
    if digit_version(mmengine.__version__) <= digit_version('0.10.7'):
        schemes += ('', *CEPH)
    CheckpointLoader.register_scheme(schemes, load_from_local, force=True)


register_config_packages()
replace_checkpoint_reader()
