"""Sampling, data-loading workers, and checks of loaded samples."""

from .sample_check import CheckSample

__all__ = ['CheckSample']
