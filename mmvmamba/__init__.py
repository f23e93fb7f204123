"""VMamba for OpenMMLab: the backbone, its selective-scan ops for CPU and CUDA.

``mmvmamba``, ``mmvmamba.ops`` and ``mmvmamba.nn`` need torch alone; ``mmvmamba.models`` and
``mmvmamba.registry`` need MMEngine.
"""

from .version import __version__

__all__ = ['__version__']
