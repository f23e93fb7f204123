"""Read, rename, match and convert checkpoint files. Requires only torch."""

from .convert import convert, kind_of, strip_checkpoint
from .keys import convert_state_dict
from .matching import Matching, load_tensors
from .reader import read_local_checkpoint, state_dict_of

__all__ = [
    'Matching',
    'convert',
    'convert_state_dict',
    'kind_of',
    'load_tensors',
    'read_local_checkpoint',
    'state_dict_of',
    'strip_checkpoint',
]
