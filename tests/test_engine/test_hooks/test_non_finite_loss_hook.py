"""Losses that are not finite are found with one question to the device."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.engine import NonFiniteLossHook
from mmvmamba.engine.errors import UserError


class Calls(TorchDispatchMode):
    """Counts the ops that run."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def check(tmp_path):
    runner = SimpleNamespace(iter=4, work_dir=tmp_path, optim_wrapper=None)
    sample = BaseDataElement(metainfo=dict(img_path='images/7.jpg'))

    def check(outputs):
        hook = NonFiniteLossHook()
        hook.after_train_iter(runner, 4, dict(data_samples=[sample]), outputs)

    return check


def mask_rcnn(**changed):
    names = ('loss', 'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask')
    losses = {name: torch.tensor(0.5, requires_grad=True) for name in names}
    return dict(losses, acc=torch.tensor(float('nan')), **changed)


def test_the_device_is_asked_once(check):
    with Calls() as calls:
        check(mask_rcnn())
    assert calls.count['aten::_local_scalar_dense'] == 1


@pytest.mark.parametrize('outputs', [None, {}, dict(acc=torch.tensor(float('nan')))])
def test_no_losses(check, outputs):
    check(outputs)


@pytest.mark.parametrize('value', [float('inf'), torch.tensor(float('nan')).half()])
def test_what_is_not_finite_is_named(check, value):
    words = r"iteration 5: \{'loss_mask': (inf|nan)\} not finite, images \['images/7\.jpg'\]"
    with pytest.raises(UserError, match=words):
        check({**mask_rcnn(), 'loss_mask': value})
