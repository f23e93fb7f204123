"""Parameter groups as plain dictionaries, and a compiled step with them."""

from types import SimpleNamespace

import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import nn

from mmvmamba.engine import PlainParamGroupsHook


def build(model):
    config = ConfigDict(
        optimizer=dict(type='AdamW', lr=0.1),
        paramwise_cfg=dict(bias_lr_mult=0.5, custom_keys={'0': dict(lr_mult=0.1)}),
    )
    return build_optim_wrapper(model, config)


def test_groups_become_plain_dictionaries():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    wrapper = build(model)
    optimizer = wrapper.optimizer
    groups, before = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
    for wrappers in (wrapper, OptimWrapperDict(a=wrapper)):
        PlainParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=wrappers))
        assert optimizer.param_groups is groups  # schedulers hold the optimizer
        assert {type(group) for group in groups} == {dict}
        assert groups == before


def test_a_step_with_them_compiles():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    wrapper = build(model)
    assert isinstance(wrapper, OptimWrapper)
    PlainParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=wrapper))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.compile(wrapper.optimizer.step, backend='eager')()
    for p, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(p, old)
