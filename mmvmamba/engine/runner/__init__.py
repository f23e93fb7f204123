"""Runners of the tools, on a GPU, on the CPU and in shards."""

from .fsdp import FSDPStrategy, vss_block_policy
from .runner import build_runner

__all__ = ['FSDPStrategy', 'build_runner', 'vss_block_policy']
