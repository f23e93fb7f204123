"""Hyper-parameters of several optimizers; test_resume_hook.py resumes whole runs."""

import pytest
import torch
from mmengine.optim import LinearLR, OptimWrapper, OptimWrapperDict

from mmvmamba.engine.hooks.resumed_settings import ResumedHyperParameters, hyper_parameters


def wrapper(lrs, **settings):
    groups = [dict(params=[torch.nn.Parameter(torch.ones(1))], lr=lr) for lr in lrs]
    return OptimWrapper(torch.optim.SGD(groups, lr=9.0, **settings))


def groups(wrapper):
    return wrapper.optimizer.param_groups


def test_the_initial_values_are_compared():
    scheduled = dict(lr=0.1, initial_lr=1.0, weight_decay=0.0)
    assert hyper_parameters([scheduled, dict(lr=2.0)]) == [
        dict(lr=1.0, weight_decay=0.0),
        dict(lr=2.0),
    ]


def test_two_optimizers():
    before = OptimWrapperDict(a=wrapper([1.0, 2.0]), b=wrapper([3.0]))
    saved = dict(optimizer=before.state_dict())
    now = OptimWrapperDict(a=wrapper([0.5, 1.0]), b=wrapper([3.0], weight_decay=0.1))
    settings = ResumedHyperParameters(now, saved, ('lr',))
    assert settings.changes() == [
        'the learning rate is 1 in the checkpoint and 0.5 in the config in 2 parameter groups; '
        "the config's is used",
        "the weight decay is 0 in the checkpoint and 0.1 in the config; the checkpoint's is used. "
        "To use the config's, add --cfg-options default_hooks.resume.override=weight_decay",
    ]
    now.load_state_dict(saved['optimizer'])
    settings.apply(dict(a=[], b=[]))
    assert [group['lr'] for name in 'ab' for group in groups(now[name])] == [0.5, 1.0, 3.0]
    assert groups(now['b'])[0]['weight_decay'] == 0.0


@pytest.mark.parametrize('old', [1.0, 0.0])
def test_a_schedule_is_scaled(old):
    before = wrapper([old])
    LinearLR(before, start_factor=0.5, end=4, by_epoch=False)
    saved = dict(optimizer=before.state_dict())
    now = wrapper([0.1])
    scheduler = LinearLR(now, start_factor=0.5, end=4, by_epoch=False)
    settings = ResumedHyperParameters(now, saved, ('lr',))
    now.load_state_dict(saved['optimizer'])
    settings.apply([scheduler])
    assert groups(now)[0]['lr'] == pytest.approx(0.05 if old else 0.1)
    assert groups(now)[0]['initial_lr'] == 0.1
    assert scheduler.base_values == [0.1]


@pytest.mark.parametrize('optimizer', [{}, None, {'state': {}}])
def test_checkpoints_without_parameter_groups(optimizer):
    settings = ResumedHyperParameters(wrapper([1.0]), dict(optimizer=optimizer), ('lr',))
    assert settings.changes() == []
    settings.apply(None)


def test_equal_settings():
    own = wrapper([0.1 + 0.2], weight_decay=0.1)
    saved = dict(optimizer=dict(param_groups=[dict(lr=0.3, weight_decay=0.1)]))
    assert ResumedHyperParameters(own, saved, ()).changes() == []
