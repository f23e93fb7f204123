"""Losses and weights that are not finite, and skipped steps."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.engine import NonFiniteLossHook
from mmvmamba.engine.errors import UserError


class Calls(TorchDispatchMode):
    """Count the ops that run."""

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
    words = (
        r"iteration 5: losses \{'loss_mask': (inf|nan)\} are not finite for "
        r"images \['images/7\.jpg'\]"
    )
    with pytest.raises(UserError, match=words):
        check({**mask_rcnn(), 'loss_mask': value})


@pytest.mark.parametrize(
    ('pointer', 'words'),
    [
        (None, 'no checkpoint has been saved yet; inspect'),
        (b'', 'no checkpoint has been saved yet; inspect'),
        (b'run/epoch_1.pth\n', 'the last good checkpoint is run/epoch_1.pth; inspect'),
        (b'\xff', "last_checkpoint' cannot be read: 'utf-8' codec .*; inspect"),
        ('folder', "last_checkpoint' is not a file; inspect"),
    ],
)
def test_the_last_good_checkpoint(check, tmp_path, pointer, words):
    path = tmp_path / 'last_checkpoint'
    if pointer == 'folder':
        path.mkdir()
    elif pointer is not None:
        path.write_bytes(pointer)
    with pytest.raises(UserError, match=words):
        check(dict(loss=float('nan')))


class Scaler:
    """Gradient scaler whose scale a test sets."""

    scale = 1024.0

    def get_scale(self):
        return self.scale


@pytest.fixture
def train(tmp_path):
    """Train with a scaler that skips steps, by itself or in a fused optimizer."""

    def train(max_skipped_steps, *steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
        wrapper = SimpleNamespace(optimizer=optimizer, loss_scaler=Scaler())
        runner = SimpleNamespace(iter=0, work_dir=tmp_path, optim_wrapper=wrapper)
        hook = NonFiniteLossHook(max_skipped_steps)
        hook.before_train(runner)
        for runner.iter, step in enumerate(steps):
            wrapper.should_update = lambda step=step: step != 'wait'
            if step in ('good', 'fused'):
                optimizer.step()
            if step in ('skip', 'fused'):
                wrapper.loss_scaler.scale /= 2
            hook.after_train_iter(runner, runner.iter, None, {})

    return train


@pytest.mark.parametrize('kind', ['skip', 'fused', 'same scale'])
@pytest.mark.parametrize('most', [0, 3])
def test_as_many_skipped_steps_as_allowed(train, most, kind):
    """A successful step resets the count, and accumulating iterations do not count."""
    skipped = [kind] * most
    train(most, 'good', *skipped, 'good', *skipped, 'wait', 'good')
    with pytest.raises(
        UserError, match=f'iteration {most + 3}: .* skipped {most + 1} steps in a row'
    ):
        train(most, 'good', 'good', *skipped, kind)


@pytest.mark.parametrize('dynamic', [True, False])
def test_a_gradient_scaler(tmp_path, dynamic):
    """PyTorch's own, with a scale that changes or stays the same."""
    weight = torch.nn.Parameter(torch.ones(1))
    wrapper = OptimWrapper(torch.optim.SGD([weight], 0.1))
    wrapper.loss_scaler = scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    runner = SimpleNamespace(iter=0, work_dir=tmp_path, optim_wrapper=wrapper)
    hook = NonFiniteLossHook(max_skipped_steps=2)
    hook.before_train(runner)

    def step(factor):
        scaler.scale(weight.sum() * factor).backward()
        scaler.step(wrapper.optimizer)
        scaler.update(None if dynamic else 1024.0)
        wrapper.zero_grad()
        hook.after_train_iter(runner, 0, None, {})

    for factor in (1.0, float('nan'), float('inf'), 1.0, float('nan'), float('nan')):
        step(factor)
    assert torch.isfinite(weight).all() and weight < 1
    with pytest.raises(UserError, match='scaler skipped 3 steps in a row'):
        step(float('nan'))


def test_a_negative_limit():
    with pytest.raises(ValueError, match='max_skipped_steps must not be negative, but got -1'):
        NonFiniteLossHook(-1)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite(tmp_path, value):
    runner = SimpleNamespace(iter=4, work_dir=tmp_path)
    weights = dict(count=torch.ones(1, dtype=torch.long), good=torch.ones(2))
    hook = NonFiniteLossHook()
    hook.before_save_checkpoint(runner, dict(state_dict=weights, meta=dict(iter=5)))
    weights['bad'] = torch.tensor([1.0, value])
    with pytest.raises(UserError, match=r'iteration 5: 1 tensor.* not finite \(the first is bad'):
        hook.before_save_checkpoint(runner, dict(state_dict=weights, meta=dict(iter=5)))
