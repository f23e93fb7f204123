"""Entry points and pretrained settings of the models in timm."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from timm.layers import is_exportable
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from mmvmamba.checkpoint.download import download, is_url
from mmvmamba.checkpoint.keys import FIRST_CONV
from mmvmamba.checkpoint.matching import adapt_tensors, match_tensors, naming_file
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.checkpoint.released import RELEASED_URLS, released_file
from mmvmamba.checkpoint.tensors import same_shape
from mmvmamba.checkpoint.unpickling import YACS_NODE
from mmvmamba.hub.config import PRETRAINED_CFG
from mmvmamba.nn import VMambaNet
from mmvmamba.nn.factory import MODEL_NAMES, all_stages
from mmvmamba.nn.hub_methods import is_hub_name
from mmvmamba.nn.settings import check_choice
from mmvmamba.ops import extension_error

_HEAD = PRETRAINED_CFG['classifier']

# timm loads files with weights_only=True. This allows the settings in the authors' full training
# files, which are read as a plain dictionary.
torch.serialization.add_safe_globals([YACS_NODE])


default_cfgs = generate_default_cfgs(
    {
        f'{name}.in1k': dict(
            url=RELEASED_URLS[arch],
            **PRETRAINED_CFG,
            paper_ids='arXiv:2401.10166',
            paper_name='VMamba: Visual State Space Model',
            origin_url='https://github.com/MzeroMiko/VMamba',
        )
        for name, arch in MODEL_NAMES.items()
    }
)


def checkpoint_filter_fn(content: Mapping[str, Any], model: VMambaNet) -> dict[str, Tensor]:
    """Rename the tensors of a file that timm has read, and check that they match a model.

    Afterwards timm adapts the first convolution to the number of channels and drops the last layer
    if the number of classes differs. Without this check it would load an incomplete file.

    Raises:
        ValueError: If a tensor in front of the classifier is missing or has another shape, if one
            holds NaN or Inf, or if the model is on the meta device.
    """
    tensors = state_dict_of(content)
    with naming_file('the checkpoint'):
        tensors = adapt_tensors(model, tensors)
        own = model.state_dict()
        if FIRST_CONV in tensors:
            own[FIRST_CONV] = own[FIRST_CONV].new_zeros(tensors[FIRST_CONV].shape)
        # timm drops a last layer of another shape, and its own load is strict about the classifier.
        is_other = {k for k in (f'{_HEAD}.weight', f'{_HEAD}.bias') if _differs(k, own, tensors)}
        matching = match_tensors(own, {k: v for k, v in tensors.items() if k not in is_other})
    matching.check('the checkpoint', type(model).__name__, allow_missing=('classifier.',))
    found = {key: value for key, value in tensors.items() if key in own}
    if not model.num_classes and not any(key.startswith('classifier.') for key in tensors):
        # The folder of a backbone. Its features do not go through the classifier's norm.
        found |= {key: value for key, value in own.items() if key.startswith('classifier.')}
    return found


def _differs(key: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    return key in own and key in tensors and not same_shape(tensors[key], own[key])


def _name_file(
    pretrained: str | os.PathLike[str] | bool, arch: str, kwargs: dict[str, Any]
) -> None:
    """Name the file of ``pretrained`` in timm's arguments, as ``mmvmamba.create_model`` finds it.

    With True it is the released file, unless the arguments name other weights. timm would download
    it without time limits, and would not notice a file that ends early.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be downloaded, or ``pretrained`` names a folder as timm does.
    """
    cfg = kwargs.get('pretrained_cfg')
    cfg = None if isinstance(cfg, str) else cfg  # the tag in a name such as vmamba_tiny.in1k
    overlay = kwargs.get('pretrained_cfg_overlay') or {}
    is_other = any(overlay.get(k) for k in ('url', 'file', 'state_dict', 'hf_hub_id', 'source'))
    if isinstance(pretrained, str | os.PathLike):
        file = os.path.expanduser(pretrained)
        if is_hub_name(file):
            raise ValueError(
                f'pretrained must be True, a file or a URL, but got {file!r}; to load '
                "a folder, call timm.create_model('local-dir:FOLDER', pretrained=True)"
            )
        file = download(file) if is_url(file) else file
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f'checkpoint {redacted(file)!r} does not exist or is not a file'
            )
    elif is_other or cfg or kwargs.get('cache_dir'):
        return
    else:
        file = released_file(arch)
    kwargs['pretrained_cfg_overlay'] = {**overlay, 'file': file}


def _register(model_name: str, arch: str) -> None:
    def build(in_chans: int = 3, **kwargs: Any) -> VMambaNet:
        return VMambaNet(arch, in_channels=in_chans, **kwargs)

    def entry_point(pretrained: str | os.PathLike[str] | bool = False, **kwargs: Any) -> nn.Module:
        """VMamba with the arguments of :class:`mmvmamba.nn.VMambaNet` and those of timm."""
        feature_cls = kwargs.get('feature_cls')
        if isinstance(feature_cls, str):
            # 'list' and 'dict' take the children of a network as stages, and 'fx' traces it.
            check_choice('feature_cls', feature_cls.lower(), ('getter', 'hook'))
        if pretrained:
            _name_file(pretrained, arch, kwargs)
        if is_exportable() and find_spec('onnxscript') and extension_error() is None:
            # timm's onnx_export.py asks for a model that it can export.
            from mmvmamba.export.onnx import register

            register()
        return build_model_with_cfg(
            build,
            model_name,
            bool(pretrained),
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=all_stages(arch, **kwargs), feature_cls='getter'),
            **kwargs,
        )

    entry_point.__name__ = entry_point.__qualname__ = model_name
    globals()[model_name] = register_model(entry_point)


for _name, _arch in MODEL_NAMES.items():
    _register(_name, _arch)
