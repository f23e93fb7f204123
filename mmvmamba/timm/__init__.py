"""Registers the models in timm: ``timm.create_model('vmamba_tiny')``. Needs timm.

``python -m mmvmamba.timm SCRIPT ARGS...`` runs a script of timm's with these models.
"""

from .models import default_cfgs

__all__ = ['default_cfgs']
