"""The rule for whether a checkpoint matches a model, and loading by this rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .keys import (
    BACKBONE,
    CLASSIFIER,
    CLASSIFIER_HEAD,
    CLASSIFIER_NORM,
    convert_state_dict,
    resize_pos_embed,
    split_state_dict,
)

#: Norms of the maps of a backbone, which a released classification file lacks.
STAGE_NORMS = ('outnorm', 'backbone.outnorm')
#: Counters of BatchNorm and buffers that are computed from arguments; older files lack them.
NEVER_REQUIRED = ('num_batches_tracked', 'relative_position_index')
_LISTED_KEYS = 8


@dataclass
class Matching:
    """Comparison of a model's tensors with those of a file, by name and shape.

    Attributes:
        total (int): Number of the model's tensors.
        found (list[str]): Names of the tensors that have the same shape in both.
        missing (list[str]): Names of the model's tensors that the file lacks.
        mismatched (dict[str, str]): The two shapes of the tensors whose shapes differ, by name.
        unexpected (list[str]): Names of the file's tensors that the model lacks.
    """

    total: int
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shapes = [f'{key} {shapes}' for key, shapes in self.mismatched.items()]
        return (
            f'{len(self.found)} of {self.total} tensors found; missing: {_first(self.missing)}; '
            f'shape mismatch: {_first(shapes)}; unexpected: {_first(self.unexpected)}'
        )

    def check(
        self,
        file: str,
        model: str,
        *,
        required: str | tuple[str, ...] = '',
        allow_missing: tuple[str, ...] = (),
    ) -> None:
        """Raise an error unless the file matches the model.

        At least one tensor must be found. Among the model's tensors whose names begin with
        ``required``, none may have another shape, and only those whose names begin with
        ``allow_missing`` may be missing. Unexpected tensors are allowed. :func:`load_tensors` sets
        the requirements for a network, ``mmvmamba/models/loading.py`` those for whole models.

        Args:
            file (str): The file in messages, e.g. "checkpoint 'x.pth'".
            model (str): The model in messages.
            required (str | tuple[str]): Prefixes of what must be complete; () for nothing.
                Defaults to '', the whole model.
            allow_missing (tuple[str]): Prefixes of what may be missing. Defaults to (), nothing.

        Raises:
            ValueError: If the file does not match the model.
        """
        wrong = [key for key in self.missing if not key.startswith(allow_missing)]
        wrong += self.mismatched
        if not self.found or any(key.startswith(required) for key in wrong):
            raise ValueError(f'{file} does not match {model}: {self}')


def match_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Matching:
    """Compare a model's own tensors with those of a file by name and shape."""
    # A backbone has no classifier.
    expected = (CLASSIFIER, BACKBONE + CLASSIFIER)
    unexpected = [k for k in tensors if k not in own and not k.startswith(expected)]
    matching = Matching(len(own), unexpected=unexpected)
    for key, value in own.items():
        if key not in tensors:
            if not key.endswith(NEVER_REQUIRED):
                matching.missing.append(key)
        elif tensors[key].shape != value.shape:
            shapes = f'{tuple(tensors[key].shape)} instead of {tuple(value.shape)}'
            matching.mismatched[key] = shapes
        else:
            matching.found.append(key)
    return matching


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], filename: str, new_head: bool = False
) -> Matching:
    """Load the tensors of a file into a network; an error changes nothing.

    Args:
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        tensors (Mapping[str, Tensor]): In any released naming scheme.
        filename (str): The file in messages.
        new_head (bool): Whether a classifier's last layer stays as it is if the file's has another
            number of classes. Defaults to False.

    Returns:
        Matching: The tensors that were loaded, and the others.

    Raises:
        ValueError: If a tensor has another shape, or is missing and is not an output norm's.
    """
    own = model.state_dict()
    tensors = adapt_tensors(model, tensors)
    matching = match_tensors(own, tensors)
    allow_missing: tuple[str, ...] = STAGE_NORMS
    if new_head and f'{CLASSIFIER_HEAD}weight' in matching.mismatched:
        body = {key: value for key, value in tensors.items() if not key.startswith(CLASSIFIER_HEAD)}
        matching = match_tensors(own, body)
        allow_missing += (CLASSIFIER_HEAD,)
    matching.check(f'checkpoint {filename!r}', type(model).__name__, allow_missing=allow_missing)
    with torch.no_grad():
        for key in matching.found:
            own[key].copy_(tensors[key])
    return matching


def adapt_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of a file for a network, and resize a position embedding."""
    is_classifier = model.out_indices is None
    tensors = split_state_dict(tensors)[0] if is_classifier else convert_state_dict(tensors)
    return with_resized_pos_embed(tensors, model.state_dict())


def with_resized_pos_embed(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], name: str = 'pos_embed'
) -> dict[str, Tensor]:
    """Resize a position embedding (1, d, h, w) to the size of the model's."""
    if name in tensors and name in own and own[name].dim() == tensors[name].dim() == 4:
        tensors = {**tensors, name: resize_pos_embed(tensors[name], own[name].shape[2:])}
    return tensors


def missing_in_classifier(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a classifier's norm and head that a file's tensors lack."""
    layers = (CLASSIFIER_NORM, CLASSIFIER_HEAD)
    needed = [f'{layer}{name}' for layer in layers for name in ('weight', 'bias')]
    return [key for key in needed if key not in tensors]


def _first(keys: list[str]) -> str:
    """List the first keys and say how many more there are."""
    more = f' and {len(keys) - _LISTED_KEYS} more' if len(keys) > _LISTED_KEYS else ''
    return (', '.join(keys[:_LISTED_KEYS]) or 'none') + more
