"""Spares runs of tiny models what takes longer than they do, and always has the same result.

Runs of the tools in processes of their own, by path, do all of it as ever.
"""

import ast
import functools
import gc
import importlib

import mmengine._strategy.base
import mmengine.config.config
import mmengine.config.utils
import mmengine.runner.runner
from mmengine.config import Config
from yapf.yapflib import yapf_api

from mmvmamba.registry import register_config_packages

#: The configs of this package that those of conftest.py inherit.
BASES = (
    'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py',
    'mmvmamba::upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py',
)

read_metafile = functools.cache(mmengine.config.utils.load)
environment = functools.cache(mmengine.runner.runner.collect_env)


def lay_out(text, *args, **kwargs):
    """Lay out a config with Python's own printer; like yapf it refuses what is not Python."""
    return ast.unparse(ast.parse(text)) + '\n', False


def prepare_forks():
    """Do what all runs need before the first of them is forked, and start no thread."""
    for part in ('engine', 'models'):
        importlib.import_module(f'mmvmamba.{part}')
    for package in ('mmdet', 'mmseg', 'mmpretrain'):
        for part in ('models', 'datasets', 'evaluation', 'engine', 'visualization'):
            importlib.import_module(f'{package}.{part}')
    environment()
    spare_runs()
    register_config_packages()
    for base in BASES:  # and what they inherit
        Config.fromstring(f'_base_ = {base!r}\n', '.py')


def spare_runs(patch=setattr):
    """Change this process; call it after the imports.

    A run lays out its config several times, asks compilers for their versions, reads the metafiles
    of each package whose config it inherits, and collects garbage after it has read each dataset.
    """
    # Releases of MMEngine import it with the module or in the call.
    for module in (mmengine.config.config, yapf_api):
        if hasattr(module, 'FormatCode'):
            patch(module, 'FormatCode', lay_out)
    for module in (mmengine.runner.runner, mmengine._strategy.base):
        patch(module, 'collect_env', lambda: environment().copy())
    patch(mmengine.config.utils, 'load', read_metafile)
    # Modules are no garbage: a collection that leaves them out does not take half a second.
    gc.collect()
    gc.freeze()
