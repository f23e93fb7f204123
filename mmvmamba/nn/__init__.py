"""The VMamba network in plain PyTorch. Requires only torch."""

from mmvmamba.checkpoint.keys import convert_state_dict

from .arch import ARCHS, Arch, resolve_arch
from .factory import create_model, list_models
from .network import VMambaNet, VSSBlock, VSSStage
from .ss2d import SS2D, register_out_norm

__all__ = [
    'ARCHS',
    'SS2D',
    'Arch',
    'VMambaNet',
    'VSSBlock',
    'VSSStage',
    'convert_state_dict',
    'create_model',
    'list_models',
    'register_out_norm',
    'resolve_arch',
]
