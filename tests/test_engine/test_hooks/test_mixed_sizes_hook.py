"""Batches that cause a warning; test_batch_size.py runs whole tools."""

from types import SimpleNamespace

import pytest
import torch

from mmvmamba.engine import MixedSizesHook


class Runner:
    """Stand-in for a runner."""

    def __init__(self):
        self.messages = []
        self.logger = SimpleNamespace(warning=self.messages.append)


def images(*sizes):
    return [torch.zeros(3, *size) for size in sizes]


@pytest.mark.parametrize(
    ('inputs', 'warns'),
    [
        (torch.zeros(2, 3, 8, 8), False),
        (images((8, 8)), False),
        (images((8, 8), (8, 8)), False),
        (images((8, 8), (8, 9)), True),
        # Test-time augmentation: a batch for each scale.
        ([images((8, 8)), images((4, 4))], False),
        ([images((8, 8), (8, 8)), images((4, 4), (4, 5))], True),
        (None, False),
        ([1, 2], False),
    ],
)
def test_what_the_hook_looks_at(inputs, warns):
    for part in ('val', 'test'):
        hook, runner = MixedSizesHook(), Runner()
        for index in range(2):
            getattr(hook, f'before_{part}_iter')(runner, index, dict(inputs=inputs))
        assert len(runner.messages) == int(warns)  # once
        assert not warns or f'{part}_dataloader.batch_size=1' in runner.messages[0]
