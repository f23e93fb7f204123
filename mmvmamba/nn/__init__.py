"""The VMamba network in plain PyTorch. Needs torch alone."""

from .arch import ARCHS, Arch, resolve_arch
from .block import VSSBlock
from .checkpoint import convert_state_dict
from .factory import create_model
from .network import VMambaNet, VSSStage
from .ss2d import SS2D

__all__ = [
    'ARCHS',
    'SS2D',
    'Arch',
    'VMambaNet',
    'VSSBlock',
    'VSSStage',
    'convert_state_dict',
    'create_model',
    'resolve_arch',
]
