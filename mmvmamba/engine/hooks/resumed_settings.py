"""Settings of a config that differ from those of the run that it resumes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from mmvmamba.engine.errors import UserError

#: Hyper-parameters that a resumed run can take from its config, and their names in messages.
OVERRIDES = dict(lr='learning rate', weight_decay='weight decay')
#: Hyper-parameters by which optimizers differ.
_DISTINCTIVE = {'betas', 'momentum', 'alpha', 'rho', 'lambd'}


def hyper_parameters(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the hyper-parameters in ``OVERRIDES`` of parameter groups, before any schedule."""
    return [
        {name: group.get(f'initial_{name}', group[name]) for name in OVERRIDES if name in group}
        for group in groups
    ]


def check_optimizers(wrapper: OptimWrapper | OptimWrapperDict, saved: Mapping[str, Any]) -> None:
    """Check that a checkpoint was saved with the optimizers of the config.

    Raises:
        UserError: If it was not.
        ValueError: If its list of optimizers is malformed.
    """
    now = {name: type(o).__name__ for name, o in _optimizers(wrapper).items()}
    groups = _saved_groups(saved)
    kinds = saved['meta'].get('optimizers')
    if kinds is not None:
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(f'meta.optimizers must be a list of str, but got {kinds!r:.200}')
        names = list(groups or now)
        names += [f'optimizer {i + 1}' for i in range(len(names), len(kinds))]
        before = dict(zip(names, kinds, strict=False))
    else:  # saved by MMEngine alone
        before = {name: _saved_kind(wrapper, name, groups[name]) for name in groups} or now
    if before != now:
        raise UserError(
            f'the checkpoint was saved with {_listed(before)}, but the config has {_listed(now)}; '
            'a run cannot change its optimizer. To start a new run from these weights, use '
            '--cfg-options load_from=CHECKPOINT and omit --resume'
        )


def _saved_kind(
    wrapper: OptimWrapper | OptimWrapperDict, name: str, groups: list[Mapping[str, Any]]
) -> str:
    """Return the config's class if the parameter groups of a checkpoint can be of that class."""
    own = _optimizers(wrapper).get(name)
    if own is None:
        return 'a different optimizer'
    keys = [set(g[0]) & _DISTINCTIVE for g in (own.param_groups, groups) if g]
    return 'a different optimizer' if len(keys) == 2 and keys[0] != keys[1] else type(own).__name__


def _listed(kinds: Mapping[str, str]) -> str:
    return ', '.join(f'{name}: {kind}' if name else kind for name, kind in kinds.items())


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
        groups = _saved_groups(saved)
        named = {name: o for name, o in _optimizers(wrapper).items() if name in groups}
        self._optimizers = list(named.values())
        self._new = [hyper_parameters(o.param_groups) for o in self._optimizers]
        self._old = [hyper_parameters(groups[name]) for name in named]

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
            changed = [(old, new) for old, new in values if not _is_equal(old, new)]
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
                f'the {words} is {_text(old)} in the checkpoint and {_text(new)} in the config'
                f'{groups}; {choice}'
            )
        return texts

    def apply(self, schedulers: Any) -> None:
        """Replace the hyper-parameters to override, after the checkpoint has been loaded.

        A learning rate that a schedule has changed is scaled by the quotient of both values.
        """
        nested = schedulers.values() if isinstance(schedulers, dict) else [schedulers or ()]
        for name in self._override:
            for optimizer, olds, news in zip(self._optimizers, self._old, self._new, strict=True):
                values = [new[name] for new in news if name in new]
                for group, old, new in zip(optimizer.param_groups, olds, values, strict=False):
                    before = old.get(name)
                    is_scaled = f'initial_{name}' in group and _is_number(before) and before
                    is_scaled = is_scaled and _is_number(group[name]) and _is_number(new)
                    group[name] = group[name] * new / before if is_scaled else new
                    if f'initial_{name}' in group:
                        group[f'initial_{name}'] = new
                for scheduler in (s for several in nested for s in several):
                    own = getattr(scheduler.optimizer, 'optimizer', scheduler.optimizer)
                    if scheduler.param_name == name and own is optimizer:
                        scheduler.base_values = list(values)


def _optimizers(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, Any]:
    """Return the optimizers by the names of an ``OptimWrapperDict``, or '' for the only one."""
    wrappers = dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}
    return {name: own.optimizer for name, own in wrappers.items()}


def _saved_groups(saved: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the parameter groups of each optimizer in a checkpoint; see :func:`_optimizers`."""
    state = saved.get('optimizer') or {}
    states = {'': state} if 'param_groups' in state else dict(state)
    return {
        name: s['param_groups']
        for name, s in states.items()
        if isinstance(s, Mapping) and 'param_groups' in s
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_equal(old: Any, new: Any) -> bool:
    if _is_number(old) and _is_number(new):
        return math.isclose(old, new)
    return type(old) is type(new) and bool(old == new)


def _text(value: Any) -> str:
    return f'{float(value):g}' if _is_number(value) else repr(value)
