"""Timing and memory of calls; on a GPU its own, whichever is the current one."""

import gc

import pytest
import torch
from torch import nn

from mmvmamba.analysis import measure

CPU = torch.device('cpu')


class Answers(nn.Module):
    """Network with a given output."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return self.answer(images * self.weight.mean())


class Hungry(Answers):
    """A step of training needs more memory than there is, once the gradients are there."""

    def forward(self, images):
        out = super().forward(images)
        self.weight.grad = torch.ones(3)
        out.register_hook(self.fail)
        return out

    error = torch.cuda.OutOfMemoryError('out of memory')

    def fail(self, grad):
        raise self.error


def step(net):
    return measure.make_call(net, torch.rand(1, 3, 4, 4), train=True, amp=False)


@pytest.mark.parametrize(
    ('answer', 'count'),
    [
        (lambda x: x, 1),
        (lambda x: [x, (x, x)], 3),
        (lambda x: dict(a=x, b=dict(c=[x, None], d='text')), 2),
    ],
)
def test_trains_on_all_tensors_that_a_model_returns(answer, count, monkeypatch):
    trained = []
    monkeypatch.setattr(torch.autograd, 'backward', lambda outputs, _: trained.extend(outputs))
    step(Answers(answer))()
    assert len(trained) == count


@pytest.mark.parametrize('error', [Hungry.error, RuntimeError('CUDA out of memory. mmvmamba')])
def test_a_step_without_memory_is_left_out_and_said(caplog, monkeypatch, error):
    monkeypatch.setattr(Hungry, 'error', error)
    hungry, other = Hungry(lambda x: x), Answers(lambda x: x)
    calls = dict(hungry=step(hungry), other=step(other))
    times = measure.interleave(calls, CPU, seconds=0, min_rounds=1)
    assert list(times) == ['other'] and hungry.weight.grad is None
    (record,) = (record for record in caplog.records if 'hungry' in record.message)
    assert record.levelname == 'WARNING' and 'not enough GPU memory' in record.message


def test_another_error_of_a_step_is_raised(monkeypatch):
    monkeypatch.setattr(Hungry, 'error', RuntimeError('another error'))
    with pytest.raises(RuntimeError, match='another error'):
        measure.interleave(dict(hungry=step(Hungry(lambda x: x))), CPU, seconds=0, min_rounds=1)


def test_progress_of_the_calls_and_of_the_rounds():
    seen = []

    def track(items):
        for item in items:
            yield item
            seen.append(len(items))

    calls = dict.fromkeys('ab', lambda: None)
    measure.interleave(calls, CPU, seconds=0, min_rounds=3, track=track)
    assert seen == [2, 2, 3, 3, 3]


def test_the_memory_is_that_of_the_device(monkeypatch):
    """Not of the current one: with one GPU nothing else would show it."""
    device, asked, held = torch.device('cuda:1'), [], [100]

    def answers(value):
        return lambda *args: asked.append(args) or value()

    for name, value in dict(
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: held[0],
        max_memory_allocated=lambda: 250,
    ).items():
        monkeypatch.setattr(torch.cuda, name, answers(value))
    assert measure.extra_memory(lambda: None, device) == 150
    assert len(asked) == 5 and set(asked) == {(device,)}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_memory_of_the_last_gpu():
    device = torch.device('cuda', torch.cuda.device_count() - 1)
    x = torch.zeros(2**20, device=device)  # 4 MiB
    gc.collect()
    assert measure.extra_memory(lambda: (x + 1) * 2, device) == 8 * 2**20
    (time,) = measure.interleave(dict(a=lambda: x + 1), device, seconds=0, min_rounds=1)['a']
    assert time > 0
