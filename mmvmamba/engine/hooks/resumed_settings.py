"""Settings of a config that differ from those of the run that it resumes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict

from mmvmamba.engine.errors import UserError

from .utils import optim_wrappers

#: Hyper-parameters that a resumed run can take from its config, and their names in messages.
OVERRIDES = dict(lr='learning rate', weight_decay='weight decay')
#: Hyper-parameters by which optimizers differ.
_DISTINCTIVE = {'betas', 'momentum', 'alpha', 'rho', 'lambd'}


def hyper_parameters(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the hyper-parameters in ``OVERRIDES`` of parameter groups, before any schedule."""
    return [
        {name: group.get(f'initial_{name}', group[name]) for name in OVERRIDES if name in group}
        for group in groups
    ]


def check_optimizers(wrapper: OptimWrapper | OptimWrapperDict, saved: Mapping[str, Any]) -> None:
    """Check that a checkpoint was saved with the optimizers of the config.

    Raises:
        UserError: If it was not.
    """
    now = [type(own.optimizer).__name__ for own in optim_wrappers(wrapper)]
    before = saved['meta'].get('optimizers')
    if before is None:  # saved by MMEngine alone
        for own, groups in zip(optim_wrappers(wrapper), _saved_groups(saved), strict=False):
            keys = [set(g[0]) & _DISTINCTIVE for g in (own.optimizer.param_groups, groups) if g]
            before = now if len(keys) < 2 or keys[0] == keys[1] else ['another optimizer']
    if before is not None and before != now:
        raise UserError(
            f'the checkpoint was saved with {", ".join(map(str, before))}, and the config has '
            f'{", ".join(now)}; a run keeps its optimizer. To start a new run from these weights, '
            'use --cfg-options load_from=CHECKPOINT without --resume'
        )


class ResumedHyperParameters:
    """Comparison of the hyper-parameters of a config with those of a checkpoint.

    Args:
        wrapper (OptimWrapper | OptimWrapperDict): The optimizers as the config builds them.
        saved (Mapping): The content of the checkpoint.
        override (Sequence[str]): The names of hyper-parameters to take from the config.
    """

    def __init__(
        self,
        wrapper: OptimWrapper | OptimWrapperDict,
        saved: Mapping[str, Any],
        override: tuple[str, ...],
    ) -> None:
        self._override = override
        self._optimizers = [w.optimizer for w in optim_wrappers(wrapper)]
        self._new = [hyper_parameters(o.param_groups) for o in self._optimizers]
        self._old = [hyper_parameters(groups) for groups in _saved_groups(saved)]

    def changes(self) -> list[str]:
        """Describe each hyper-parameter that differs, and how to use the config's."""
        texts = []
        for name, words in OVERRIDES.items():
            values = [
                (old[name], new[name])
                for olds, news in zip(self._old, self._new, strict=False)
                for old, new in zip(olds, news, strict=False)
                if name in old and name in new
            ]
            changed = [(old, new) for old, new in values if not math.isclose(old, new)]
            if not changed:
                continue
            old, new = changed[0]
            groups = f' in {len(changed)} parameter groups' if len(changed) > 1 else ''
            choice = (
                "the config's is used"
                if name in self._override
                else "the checkpoint's is used. To use the config's, add --cfg-options "
                f'default_hooks.resume.override={name}'
            )
            texts.append(
                f'the {words} is {old:g} in the checkpoint and {new:g} in the config{groups}; '
                f'{choice}'
            )
        return texts

    def apply(self, schedulers: Any) -> None:
        """Replace the hyper-parameters to override, after the checkpoint has been loaded.

        A learning rate that a schedule has changed is scaled by the quotient of both values.
        """
        nested = schedulers.values() if isinstance(schedulers, dict) else [schedulers or ()]
        for name in self._override:
            for optimizer, olds, news in zip(self._optimizers, self._old, self._new, strict=False):
                values = [new[name] for new in news]
                for group, old, new in zip(optimizer.param_groups, olds, values, strict=False):
                    is_scaled = f'initial_{name}' in group and old[name]
                    group[name] = group[name] * new / old[name] if is_scaled else new
                    if f'initial_{name}' in group:
                        group[f'initial_{name}'] = new
                for scheduler in (s for several in nested for s in several):
                    own = getattr(scheduler.optimizer, 'optimizer', scheduler.optimizer)
                    if scheduler.param_name == name and own is optimizer:
                        scheduler.base_values = list(values)


def _saved_groups(saved: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Return the parameter groups of each optimizer in a checkpoint."""
    state = saved.get('optimizer') or {}
    states = [state] if 'param_groups' in state else list(state.values())
    return [s['param_groups'] for s in states if isinstance(s, Mapping) and 'param_groups' in s]
