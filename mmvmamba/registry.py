"""Child registries of MMEngine's, so that ``type='mmvmamba.X'`` resolves in any config."""

import importlib.util

import mmengine.registry as root
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry


def _child(parent: Registry, location: str = 'mmvmamba.engine') -> Registry:
    return Registry(parent.name, parent=parent, scope='mmvmamba', locations=[location])


MODELS = _child(root.MODELS, 'mmvmamba.models')
FUNCTIONS = _child(root.FUNCTIONS)
HOOKS = _child(root.HOOKS)
STRATEGIES = _child(root.STRATEGIES)
TRANSFORMS = _child(root.TRANSFORMS)
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


register_config_packages()
