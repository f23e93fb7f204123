"""Parameter groups that torch.compile can follow."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict

from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class PlainParamGroupsHook(Hook):
    """Makes dictionaries of an optimizer's groups, for ``compile=True``.

    With a ``paramwise_cfg`` they are of MMEngine's ``ConfigDict``, at which the compilation of a
    training step fails ("'UserDefinedDictVariable' object has no attribute 'items'").
    """

    def before_train(self, runner: Any) -> None:
        """Replaces them, after a resumption has filled them."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            groups = each.optimizer.param_groups
            groups[:] = [dict(group) for group in groups]
