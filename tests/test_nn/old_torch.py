"""Tests that the oldest supported torch does not pass."""

import pytest
import torch

# The results are right there, but a compiled model compiles again for other sizes.
compiles_the_convolution = pytest.mark.skipif(
    torch.__version__.startswith('2.10.'),
    reason="torch 2.10 takes every compilation for an export and keeps PyTorch's convolution",
)
checkpoints_random_numbers = pytest.mark.skipif(
    torch.__version__.startswith('2.10.'),
    reason='torch 2.10 does not compile the backward of drop path within a checkpoint',
)
