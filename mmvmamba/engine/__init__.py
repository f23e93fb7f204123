"""Extensions of MMEngine's runner."""

from .data import *  # noqa: F403
from .hooks import *  # noqa: F403
from .optimizers import *  # noqa: F403
from .runner import *  # noqa: F403
from .visualizer import adaptive_visualizer as adaptive_visualizer
from .visualizer import multispectral_visualizer as multispectral_visualizer
