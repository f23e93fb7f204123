"""Stand-ins for the compiled modules that networks with a selective scan import.

``import mmvmamba.dropin``, before the network, provides ``selective_scan_cuda``,
``selective_scan_cuda_core`` and ``selective_scan_cuda_oflex``, ``causal_conv1d``, and the scan and
the layer norm of ``mamba_ssm``. They run on CPU and GPU, the scans with the kernels of this
package, and require only torch. Installed modules take precedence unless :func:`install` is told to
replace them.

``python -m mmvmamba.dropin`` lists the modules, and ``python -m mmvmamba.dropin SCRIPT [ARG ...]``
runs an unmodified script.
"""

import importlib
import os
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

__all__ = ['MODULES', 'install']

_CONVOLUTIONS = {name: name for name in ('causal_conv1d_fn', 'causal_conv1d_update')}
_STEPS = tuple(f'causal_conv1d_{step}_function' for step in ('fwd', 'bwd', 'update'))
_INNER = ('mamba_inner_fn', 'mamba_inner_ref', 'mamba_inner_fn_no_out_proj')
_SCANS = ('selective_scan_fn', 'selective_scan_ref', 'bimamba_inner_fn', 'bimamba_inner_ref')
_NORMS = ('RMSNorm', 'layer_norm_fn', 'rms_norm_fn')

#: For each module, the source file, and its names with those in the file.
_CONTENTS: dict[str, tuple[str, dict[str, str]]] = {
    'selective_scan_cuda': ('extensions', {'fwd': 'mamba_fwd', 'bwd': 'mamba_bwd'}),
    'selective_scan_cuda_core': ('extensions', {'fwd': 'core_fwd', 'bwd': 'core_bwd'}),
    'selective_scan_cuda_oflex': ('extensions', {'fwd': 'oflex_fwd', 'bwd': 'core_bwd'}),
    'mamba_ssm': ('selective_scan_interface', {n: n for n in (_SCANS[0], _INNER[0])}),
    'mamba_ssm.ops': ('', {}),
    'mamba_ssm.ops.selective_scan_interface': (
        'selective_scan_interface',
        {name: name for name in (*_SCANS, *_INNER)},
    ),
    'mamba_ssm.ops.triton': ('', {}),
    'mamba_ssm.ops.triton.layer_norm': ('layer_norm', {name: name for name in _NORMS}),
    'mamba_ssm.ops.triton.layernorm': ('layer_norm', {name: name for name in _NORMS}),
    'causal_conv1d': ('causal_conv1d', _CONVOLUTIONS),
    'causal_conv1d.causal_conv1d_interface': ('causal_conv1d', _CONVOLUTIONS),
    'causal_conv1d.cpp_functions': ('causal_conv1d', {name: name for name in _STEPS}),
    'causal_conv1d_cuda': (
        'causal_conv1d',
        {
            'causal_conv1d_fwd': 'extension_fwd',
            'causal_conv1d_bwd': 'extension_bwd',
            'causal_conv1d_update': 'causal_conv1d_update_function',
        },
    ),
}
#: The last versions before Mamba-2 and before the changed arguments of causal_conv1d_cuda.
_VERSIONS = {'mamba_ssm': '1.2.2+mmvmamba', 'causal_conv1d': '1.4.0+mmvmamba'}

#: Environment variable: 1 to replace installed modules, as ``install(replace=True)`` does.
REPLACE = 'MMVMAMBA_DROPIN_REPLACE'
#: The modules that are provided.
MODULES = tuple(_CONTENTS)
#: The packages. They are not replaced, as an installed package has its own modules.
_PACKAGES = frozenset(name.rpartition('.')[0] for name in MODULES) - {''}


class _StandInLoader(Loader):
    """Fill a module with names of this package."""

    def exec_module(self, module: types.ModuleType) -> None:
        file, names = _CONTENTS[module.__name__]
        if version := _VERSIONS.get(module.__name__):
            vars(module)['__version__'] = version
        if file:
            source = importlib.import_module(f'{__name__}.{file}')
            vars(module).update({name: getattr(source, here) for name, here in names.items()})


class _Finder(MetaPathFinder):
    """Find the stand-ins of some modules."""

    def __init__(self, modules: frozenset[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self.modules:
            return None
        is_package = name in _PACKAGES
        spec = ModuleSpec(name, _StandInLoader(), origin=__file__, is_package=is_package)
        spec.has_location = True  # so that errors of `from ... import ...` name this file
        return spec


#: The last finder, consulted after installed modules, and the first one.
_MISSING, _REPLACED = _Finder(frozenset(MODULES)), _Finder(frozenset(MODULES) - _PACKAGES)


def install(replace: bool = False) -> None:
    """Make the stand-ins importable. ``import mmvmamba.dropin`` does this without ``replace``.

    Args:
        replace (bool): Whether to also replace installed modules. Their packages stay
            importable, for example ``mamba_ssm.modules``. Defaults to False.

    Raises:
        RuntimeError: If an installed module was imported before it could be replaced.
    """
    if _MISSING not in sys.meta_path:
        sys.meta_path.append(_MISSING)
    if not replace or _REPLACED in sys.meta_path:
        return
    imported = [n for n in _REPLACED.modules if n in sys.modules and not _is_stand_in(n)]
    if imported:
        raise RuntimeError(
            f'install(replace=True) must be called before the first import of {", ".join(imported)}'
        )
    sys.meta_path.insert(0, _REPLACED)


def _is_stand_in(name: str) -> bool:
    spec = getattr(sys.modules.get(name), '__spec__', None)
    return isinstance(getattr(spec, 'loader', None), _StandInLoader)


install(os.environ.get(REPLACE) == '1')
