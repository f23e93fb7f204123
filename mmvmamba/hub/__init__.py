"""Hugging Face Hub folders: `config.json` in timm's format, `model.safetensors` and a model card.

Reading a local folder requires only mmvmamba. Writing one requires huggingface_hub.
"""

from .folder import load_folder, write_folder
from .model_card import model_card
from .released import REPORTED, Reported, arch_of

__all__ = ['REPORTED', 'Reported', 'arch_of', 'load_folder', 'model_card', 'write_folder']
