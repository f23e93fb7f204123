"""Register the models in timm, for ``timm.create_model('vmamba_tiny')``. Needs timm.

``python -m mmvmamba.timm SCRIPT [ARGS ...]`` runs a script of timm with the models registered.
"""

from .models import default_cfgs

__all__ = ['default_cfgs']
