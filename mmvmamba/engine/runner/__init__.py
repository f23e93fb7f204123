"""MMEngine's runners on a CPU and in shards, with errors that name what is wrong."""

from .fsdp import FSDPStrategy, vss_block_policy
from .runner import ToolRunnerMixin, build_runner

__all__ = ['FSDPStrategy', 'ToolRunnerMixin', 'build_runner', 'vss_block_policy']
