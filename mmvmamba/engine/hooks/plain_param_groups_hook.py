"""Parameter groups that torch.compile can trace."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from mmvmamba.registry import HOOKS

from .utils import optim_wrappers


@HOOKS.register_module()
class PlainParamGroupsHook(Hook):
    """Turn the parameter groups of an optimizer into plain dictionaries, for ``compile=True``.

    With a ``paramwise_cfg`` they are instances of MMEngine's ``ConfigDict``, and compiling a
    training step fails ("'UserDefinedDictVariable' object has no attribute 'items'").
    """

    def before_train(self, runner: Any) -> None:
        """Replace the groups, after a resumed run has filled them."""
        for wrapper in optim_wrappers(runner):
            groups = wrapper.optimizer.param_groups
            groups[:] = [dict(group) for group in groups]
