"""Child registries of MMEngine's, so that ``type='mmvmamba.X'`` resolves in any config."""

import importlib.util

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmvmamba', locations=['mmvmamba.models'])
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope='mmvmamba', locations=['mmvmamba.engine']
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmvmamba', locations=['mmvmamba.engine'])
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmvmamba', locations=['mmvmamba.engine']
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmvmamba', locations=['mmvmamba.engine']
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmvmamba',
    locations=['mmvmamba.engine'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmvmamba',
    locations=['mmvmamba.engine'],
)
#: Empty: MMEngine marks the schedules of a base ``mmvmamba::`` with this scope, and warns without.
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=MMENGINE_PARAM_SCHEDULERS,
    scope='mmvmamba',
    locations=['mmvmamba.engine'],
)


def register_config_packages() -> None:
    """Makes ``mmseg::`` and ``mmvmamba::`` bases resolve in configs.

    MMEngine looks a base's package up in a table of distribution names. It names the open-mmlab
    distribution of mmseg, which the maintained forks do not carry, and does not know this package.
    What is no distribution it finds as a module. For mmseg that is the import name; here it is a
    module of the package, as mmengine 0.10.7 takes the folder of a distribution's metadata for
    that of the code, which it is not in an editable installation. To be called before a config is
    read.
    """
    MODULE2PACKAGE['mmvmamba'] = __name__
    if importlib.util.find_spec('mmseg') is not None:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


register_config_packages()
