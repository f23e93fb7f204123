"""Hyper-parameters of several optimizers; test_resume_hook.py resumes whole runs."""

import pytest
import torch
from mmengine.optim import LinearLR, OptimWrapper, OptimWrapperDict

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.hooks.resumed_settings import (
    ResumedHyperParameters,
    check_optimizers,
    hyper_parameters,
)


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


def adamw():
    return OptimWrapper(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0))


def sgd_and_adamw(is_reversed=False, **others):
    wrappers = dict(a=wrapper([1.0]), b=adamw(), **others)
    return OptimWrapperDict(**dict(reversed(wrappers.items()) if is_reversed else wrappers))


@pytest.mark.parametrize('kinds', [['SGD', 'AdamW'], None], ids=['own', 'stock'])
def test_optimizers_are_compared_by_name(kinds):
    saved = dict(optimizer=sgd_and_adamw().state_dict(), meta=dict(optimizers=kinds))
    check_optimizers(sgd_and_adamw(), saved)
    check_optimizers(sgd_and_adamw(is_reversed=True), saved)
    for other in (
        OptimWrapperDict(a=adamw(), b=adamw()),
        OptimWrapperDict(a=wrapper([1.0]), b=wrapper([1.0])),
        OptimWrapperDict(a=adamw(), b=wrapper([1.0])),
        OptimWrapperDict(a=wrapper([1.0]), c=adamw()),
        OptimWrapperDict(a=wrapper([1.0])),
        sgd_and_adamw(c=adamw()),
        wrapper([1.0]),
    ):
        with pytest.raises(UserError, match='the checkpoint was saved with .*, but the config has'):
            check_optimizers(other, saved)


def test_the_number_of_optimizers_without_their_state():
    check_optimizers(wrapper([1.0]), dict(meta=dict(optimizers=['SGD'])))
    check_optimizers(wrapper([1.0]), dict(meta={}))
    for kinds in ([], ['SGD', 'SGD'], ['AdamW']):
        with pytest.raises(UserError, match=r'was saved with .*, but the config has SGD;'):
            check_optimizers(wrapper([1.0]), dict(meta=dict(optimizers=kinds)))


def test_hyper_parameters_of_optimizers_in_another_order():
    before = OptimWrapperDict(a=wrapper([1.0]), b=wrapper([2.0]))
    saved = dict(optimizer=before.state_dict())
    now = OptimWrapperDict(b=wrapper([2.0]), a=wrapper([1.0]))
    assert ResumedHyperParameters(now, saved, ()).changes() == []


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        (None, None, None),
        (None, 1.0, 'is None in the checkpoint and 1 in the config'),
        (1.0, None, 'is 1 in the checkpoint and None in the config'),
        ('fast', 2, "is 'fast' in the checkpoint and 2 in the config"),
        (torch.tensor(1.0), 1.0, None),
        (torch.tensor(1.0), 2.0, 'is 1 in the checkpoint and 2 in the config'),
    ],
)
def test_hyper_parameters_that_are_not_numbers(old, new, words):
    own = wrapper([1.0])
    groups(own)[0].update(lr=new, initial_lr=new)
    saved = dict(optimizer=dict(param_groups=[dict(lr=old, initial_lr=old)]))
    settings = ResumedHyperParameters(own, saved, ('lr',))
    changes = settings.changes()
    assert len(changes) == (words is not None)
    assert not words or words in changes[0]
    groups(own)[0].update(lr=old, initial_lr=old)  # as loaded
    settings.apply(None)
    assert groups(own)[0]['lr'] == groups(own)[0]['initial_lr'] == new


def test_an_override_that_the_optimizer_does_not_have():
    own = OptimWrapper(torch.optim.Rprop([torch.nn.Parameter(torch.ones(1))], lr=1.0))
    settings = ResumedHyperParameters(own, dict(optimizer=own.state_dict()), ('weight_decay',))
    assert settings.changes() == []
    settings.apply(None)


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
