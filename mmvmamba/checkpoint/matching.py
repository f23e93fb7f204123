"""The rule for whether a checkpoint matches a model, and loading by this rule."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .keys import (
    BACKBONE,
    CLASSIFIER,
    CLASSIFIER_HEAD,
    CLASSIFIER_NORM,
    FIRST_CONV,
    adapt_channels,
    convert_state_dict,
    resize_pos_embed,
    split_state_dict,
)
from .tensors import count_non_finite, kind_of_dtype, same_shape, shown, unusable

#: Norms of the maps of a backbone, which a released classification file lacks.
STAGE_NORMS = ('outnorm', 'backbone.outnorm')
#: Counters of BatchNorm and buffers that are computed from arguments; older files lack them.
NEVER_REQUIRED = ('num_batches_tracked', 'relative_position_index')
_LISTED_KEYS = 8
_RGB = 3


@dataclass
class Matching:
    """Comparison of the tensors of a model and a file, by name, shape and kind of dtype.

    Attributes:
        total (int): Number of the model's tensors.
        found (list[str]): Names of the tensors that have the same shape and kind in both. Floating
            point of any width is one kind; integers, bool and complex are the others.
        missing (list[str]): Names of the model's tensors that the file lacks.
        mismatched (dict[str, str]): How a tensor differs, by name: the two shapes, or the two
            dtypes if those are of different kinds, e.g. 'int8 instead of float32'.
        unexpected (list[str]): Names of the file's tensors that the model lacks.
        non_finite (dict[str, str]): How many values of a found tensor are NaN or Inf, in the
            model's dtype, by name. A tensor that is not finite in the model either, such as a mask
            with -Inf, is left out.
        adapted (str): How a tensor was adapted to the model's image channels; '' if none was.
    """

    total: int
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    non_finite: dict[str, str] = field(default_factory=dict)
    adapted: str = ''

    def __str__(self) -> str:
        return (
            f'{len(self.found)} of {self.total} tensors found; missing: {_first(self.missing)}; '
            f'shape or dtype mismatch: {_first(self.mismatched)}; '
            f'unexpected: {_first(self.unexpected)}' + (f'; {self.adapted}' if self.adapted else '')
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

        At least one tensor must be found, and all that are must be finite. Among the model's
        tensors whose names begin with ``required``, none may have another shape or kind, and only
        those whose names begin with ``allow_missing`` may be missing. Unexpected tensors are
        allowed. :func:`load_tensors` sets the requirements for a network,
        ``mmvmamba/models/loading.py`` those for whole models.

        Args:
            file (str): The file in messages, e.g. "checkpoint 'x.pth'".
            model (str): The model in messages.
            required (str | tuple[str]): Prefixes of what must be complete; () for nothing.
                Defaults to '', the whole model.
            allow_missing (tuple[str]): Prefixes of what may be missing. Defaults to (), nothing.

        Raises:
            ValueError: If the file does not match the model, or contains NaN or Inf.
        """
        wrong = [key for key in self.missing if not key.startswith(allow_missing)]
        wrong += self.mismatched
        if not self.found or any(key.startswith(required) for key in wrong):
            raise ValueError(f'{file} does not match {model}: {self}')
        if self.non_finite:
            raise ValueError(
                f'{file} contains NaN or Inf for {model}: {_first(self.non_finite)}. The run that '
                'saved it has probably diverged; use an earlier checkpoint'
            )


def match_tensors(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], assign: bool = False
) -> Matching:
    """Compare a model's own tensors with those of a file by name, shape, kind and values.

    Args:
        own (Mapping[str, Tensor]): The tensors of the model.
        tensors (Mapping[str, Tensor]): Those of the file, by the same names.
        assign (bool): Whether they are to replace those of the model, which may then be on the
            meta device. Defaults to False.

    Raises:
        ValueError: If the model is on the meta device, where a load has no effect.
    """
    # The state dict of a module with extra state holds other objects too.
    if not assign and any(isinstance(value, Tensor) and value.is_meta for value in own.values()):
        raise ValueError(
            'the model is on the meta device, where weights cannot be loaded; '
            "call model.to_empty(device='cpu') first"
        )
    # A backbone has no classifier.
    expected = (CLASSIFIER, BACKBONE + CLASSIFIER)
    unexpected = [k for k in tensors if k not in own and not k.startswith(expected)]
    matching = Matching(len(own), unexpected=unexpected)
    for key, value in own.items():
        if key not in tensors:
            if not key.endswith(NEVER_REQUIRED):
                matching.missing.append(key)
        elif difference := _difference(key, tensors[key], value):
            matching.mismatched[key] = difference
        else:
            matching.found.append(key)
            if count := _non_finite(tensors[key], value, assign):
                matching.non_finite[key] = count
    return matching


def _difference(key: str, given: Tensor, own: Tensor) -> str:
    """Describe why a tensor of a file cannot be the model's own; return '' if it can."""
    if kind := unusable(given):
        return f'{kind} instead of a dense one'
    if given.shape != own.shape:
        return f'{tuple(given.shape)} instead of {tuple(own.shape)}'
    # Averages of several checkpoints have counters in floating point.
    is_counter = key.endswith(NEVER_REQUIRED) and given.is_floating_point()
    if kind_of_dtype(given.dtype) != kind_of_dtype(own.dtype) and not is_counter:
        return f'{given.dtype} instead of {own.dtype}'.replace('torch.', '')
    return ''


def _non_finite(given: Tensor, own: Tensor, assign: bool) -> str:
    """Say how many values are NaN or Inf after a load, and not deliberately; return '' if none."""
    dtype = given.dtype if assign else own.dtype
    count = count_non_finite(given, dtype)
    if not count or (not own.is_meta and count_non_finite(own, own.dtype)):
        return ''
    overflow = count_non_finite(given, given.dtype) < count
    too_large = f', some too large for {dtype}'.replace('torch.', '') if overflow else ''
    return f'({count} of {given.numel()} values{too_large})'


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], filename: str, new_head: bool = False
) -> Matching:
    """Load the tensors of a file into a network. An error leaves the network unchanged.

    The first convolution of a file for 3 image channels is adapted if the network has a different
    number.

    Args:
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        tensors (Mapping[str, Tensor]): In any released naming scheme.
        filename (str): The file in messages.
        new_head (bool): Whether to keep a classifier's last layer if the file has a different
            number of classes. Defaults to False.

    Returns:
        Matching: The tensors that were loaded, and the others.

    Raises:
        ValueError: If a tensor has a different shape or kind of dtype, is missing (except for
            output norms), or contains NaN or Inf, or if the model is on the meta device.
    """
    found, matching = checked_tensors(model, tensors, filename, new_head)
    copy_tensors(model, found)
    return matching


def checked_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], filename: str, new_head: bool = False
) -> tuple[dict[str, Tensor], Matching]:
    """Return what :func:`load_tensors` would load, by the model's names; nothing is changed."""
    own, head = model.state_dict(), f'{CLASSIFIER_HEAD}weight'
    with naming_file(f'checkpoint {filename!r}'):
        tensors, adapted = with_image_channels(adapt_tensors(model, tensors), model)
        allow_missing: tuple[str, ...] = STAGE_NORMS
        has_head = new_head and head in own and head in tensors
        if has_head and not same_shape(tensors[head], own[head]):
            tensors = {k: v for k, v in tensors.items() if not k.startswith(CLASSIFIER_HEAD)}
            allow_missing += (CLASSIFIER_HEAD,)
        matching = match_tensors(own, tensors)
        matching.adapted = adapted
    matching.check(f'checkpoint {filename!r}', type(model).__name__, allow_missing=allow_missing)
    return {key: tensors[key] for key in matching.found}, matching


def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors that :func:`checked_tensors` returned."""
    own = model.state_dict()
    with torch.no_grad():
        for key, value in tensors.items():
            own[key].copy_(value)


@contextmanager
def naming_file(file: str) -> Iterator[None]:
    """Put the file in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{file} cannot be loaded: {error}') from None


def adapt_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of a file for a network, and resize a position embedding."""
    is_classifier = model.out_indices is None
    tensors = split_state_dict(tensors)[0] if is_classifier else convert_state_dict(tensors)
    return with_resized_pos_embed(tensors, model.state_dict())


def with_resized_pos_embed(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], name: str = 'pos_embed'
) -> dict[str, Tensor]:
    """Resize a position embedding (1, d, h, w) to the size of the model's.

    One that cannot be resized stays as it is, so that the comparison with the model names it.
    """
    if name not in tensors or name not in own or unusable(tensors[name]):
        return tensors
    given, size = tensors[name], own[name].shape[2:]
    if own[name].dim() == given.dim() == 4 and given.numel() and given.is_floating_point():
        given = given.float() if given.dtype.itemsize == 1 else given
        tensors = {**tensors, name: resize_pos_embed(given, size)}
    return tensors


def with_image_channels(
    tensors: dict[str, Tensor], model: nn.Module, prefix: str = ''
) -> tuple[dict[str, Tensor], str]:
    """Adapt the first convolution of a 3-channel file to the network's number of image channels.

    One that differs in anything else stays as it is, so that the comparison with the model names
    it. A test or a resumed run must not adapt it: the results would be meaningless.

    Args:
        tensors (dict[str, Tensor]): By the names of the network, after ``prefix``.
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        prefix (str): That of the network in a whole model. Defaults to ''.

    Returns:
        tuple[dict[str, Tensor], str]: The tensors, and a description for the log, or ''.
    """
    stem: Any = model.patch_embed
    conv, name = stem[0], prefix + FIRST_CONV  # the parameters may be sharded
    channels, shape = conv.in_channels, (conv.out_channels, _RGB, *conv.kernel_size)
    if channels == _RGB or name not in tensors or unusable(tensors[name]):
        return tensors, ''
    given = tensors[name]
    if given.shape != shape or not given.is_floating_point():
        return tensors, ''
    adapted = f'{name} adapted from {_RGB} to {channels} image channels'
    return {**tensors, name: adapt_channels(given, channels)}, adapted


def missing_in_classifier(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a classifier's norm and head that a file's tensors lack."""
    layers = (CLASSIFIER_NORM, CLASSIFIER_HEAD)
    needed = [f'{layer}{name}' for layer in layers for name in ('weight', 'bias')]
    return [key for key in needed if key not in tensors]


def _first(keys: Iterable[str] | Mapping[str, str]) -> str:
    """List the first keys, with the details of a mapping, and say how many more there are."""
    details = keys if isinstance(keys, Mapping) else dict.fromkeys(keys, '')
    listed = [f'{shown(key)} {details[key]}'.rstrip() for key in [*details][:_LISTED_KEYS]]
    hidden = len(details) - len(listed)
    return (', '.join(listed) or 'none') + (f' and {hidden} more' if hidden else '')
