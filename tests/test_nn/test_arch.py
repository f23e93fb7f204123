"""Architectures: names, settings and what is refused."""

import dataclasses
import inspect

import pytest

from mmvmamba.nn import ARCHS, SS2D, Arch, resolve_arch
from mmvmamba.nn.arch import check_known


def test_resolve_arch_takes_names_dicts_and_archs():
    arch = resolve_arch('small', drop_path_rate=0.1, d_state=None)
    assert arch == dataclasses.replace(ARCHS['small_s2l15'], drop_path_rate=0.1)
    assert resolve_arch(arch) is not None
    assert resolve_arch({'d_state': 4}).d_state == 4
    assert ARCHS['tiny'] is ARCHS['tiny_s1l8']


def test_settings_of_ss2d_are_all_passed_on():
    arch = Arch(ssm_drop_rate=0.25, d_state=3)
    parameters = inspect.signature(SS2D).parameters.keys() - {'dim', 'backend'}
    assert arch.ssm_settings.keys() == parameters
    assert arch.ssm_settings['drop_rate'] == 0.25 and arch.ssm_settings['d_state'] == 3


def test_unknown_names_are_told_with_those_that_are_spelled_alike():
    check_known(['d_state'], ['out_indices'])
    with pytest.raises(ValueError, match=r"architecture settings \['depth'\]; did you mean depths"):
        check_known(['depth'])
    with pytest.raises(ValueError, match=r"unknown settings \['out_index'\]; did you mean out_ind"):
        check_known(['out_index'], ['out_indices'])


def test_an_arch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARCHS['tiny'].d_state = 2
