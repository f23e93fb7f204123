"""Folders of the Hugging Face Hub: `config.json` in timm's format, `model.safetensors`, a card.

Reading a local folder needs only mmvmamba; writing one needs huggingface_hub.
"""

from .folder import load_folder, write_folder
from .model_card import model_card
from .released import REPORTED, Reported, arch_of

__all__ = ['REPORTED', 'Reported', 'arch_of', 'load_folder', 'model_card', 'write_folder']
