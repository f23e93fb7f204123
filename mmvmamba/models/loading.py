"""Loading of checkpoints into OpenMMLab's models, from files, URLs and Ceph."""

import io
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import mmengine.runner.checkpoint
from mmengine import fileio
from mmengine.config import ConfigDict
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import HistoryBuffer, MMLogger, print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmvmamba.checkpoint.download import download
from mmvmamba.checkpoint.keys import (
    convert_state_dict,
    rename_tensors,
    split_backbone,
    to_image_classifier,
    without_module,
)
from mmvmamba.checkpoint.matching import (
    STAGE_NORMS,
    Matching,
    checked_tensors,
    match_tensors,
    missing_in_classifier,
    naming_file,
    with_resized_pos_embed,
)
from mmvmamba.checkpoint.reader import as_filename, read_local_checkpoint, state_dict_of
from mmvmamba.checkpoint.redaction import redacted, redacted_url
from mmvmamba.nn import VMambaNet
from mmvmamba.registry import CEPH, load_from_local

_HTTP = ('http://', 'https://')


def read_checkpoint(filename: str | PathLike, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint as :func:`mmvmamba.checkpoint.read_local_checkpoint` does.

    Args:
        filename (str | PathLike): A path, a URL (http, https), or an address of MMEngine's Ceph
            client (s3, petrel).
        map_location (Any): As in :func:`torch.load`. Defaults to 'cpu'.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If ``filename`` is neither a path nor a URL.
        ValueError: If the file is truncated, is not a checkpoint, needs another class, or if its
            address is of another kind.
    """
    filename = as_filename(filename)
    file: Any = local_path(filename)
    name = redacted(filename)
    if file is None:
        file = io.BytesIO(fileio.get(filename, backend_args=dict(backend='petrel')))
    elif file != filename:
        name = f'{name}, cached in {file}'
    content = read_local_checkpoint(
        file, map_location, name=name, history_buffer=HistoryBuffer, config_dict=ConfigDict
    )
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict):
        # Written by mmcv until 2022. MMEngine's runners execute its code when they resume.
        meta.pop('config', None)
    return content


def local_path(filename: str | PathLike) -> str | None:
    """Return the path of a checkpoint, and download it first from a URL; None stands for Ceph.

    Raises:
        ValueError: If the file cannot be downloaded, or its address is of another kind.
    """
    filename = as_filename(filename)
    if '://' not in filename:
        return filename
    if filename.startswith(_HTTP):
        return _download(filename)
    if not any(re.match(pattern, filename) for pattern in CEPH):
        name = redacted_url(filename)
        raise ValueError(
            f'checkpoint {name!r} must be a path or start with http://, https://, s3:// or petrel://'
        )
    return None


def _download(url: str) -> str:
    """Download into the cache, in the first process before all others, and return the path.

    If the download fails in the first process, all processes raise its error. Without that they
    would wait until the process group times out.
    """
    log = MMLogger.get_current_instance().info
    failure: list[str | None] = [None]
    if get_rank() == 0:
        try:
            download(url, log=log)
        except ValueError as error:
            failure[0] = str(error)
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise ValueError(failure[0])
    # Processes on another machine may lack the file.
    return download(url, log=log)


def use_safe_loader() -> None:
    """Make MMEngine read files and URLs with :func:`read_checkpoint` in this process.

    MMEngine itself still reads its names of other networks' weights, such as ``torchvision://``.
    """
    CheckpointLoader.register_scheme(['', *_HTTP, *CEPH], load_from_local, force=True)
    # Its loader prints or logs the address of each file.
    mmengine.runner.checkpoint.print_log = _print_redacted


def _print_redacted(msg: Any, *args: Any, **kwargs: Any) -> None:
    print_log(redacted(str(msg)), *args, **kwargs)


def read_pretrained(
    model: nn.Module, filename: str | PathLike, prefix: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a file, or of the part with a prefix, that a backbone is loaded from.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read or does not match the backbone.
    """
    content = read_checkpoint(filename)
    filename = redacted(as_filename(filename))
    tensors = state_dict_of(content, filename)
    if prefix is not None:
        start = prefix.rstrip('.') + '.'
        tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if not tensors:
            raise ValueError(f'checkpoint {filename!r} has no keys with the prefix {prefix!r}')
    tensors, matching = checked_tensors(model, tensors, filename)
    MMLogger.get_current_instance().info(f'{filename}: {matching}')
    return tensors


def load_whole(model: nn.Module, checkpoint: Any, filename: str) -> None:
    """Load a whole detector, segmentor or classifier from what :func:`read_checkpoint` returned.

    An error changes nothing.
    """
    filename = redacted(filename)
    tensors = adapt_state_dict(model, state_dict_of(checkpoint, filename), filename)
    check_model(model, tensors, filename, whole=True)
    model.load_state_dict(tensors, strict=False)


def adapt_state_dict(
    model: nn.Module, tensors: Mapping[str, Tensor], filename: str
) -> dict[str, Tensor]:
    """Rename the tensors of a file for a whole model, if its ``backbone`` is a VMamba.

    Raises:
        ValueError: If two names mean the same tensor.
    """
    with naming_file(f'checkpoint {filename!r}'):
        return _adapt(model, without_module(tensors))


def _adapt(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(getattr(model, 'backbone', None), VMambaNet):
        return tensors
    inside, others = split_backbone(tensors)
    if not others and not any(key.startswith('layers.') for key in inside):
        return tensors  # neither a whole model nor a backbone, e.g. the heads alone
    renamed = rename_tensors(inside)
    if not others and isinstance(getattr(getattr(model, 'head', None), 'fc', None), nn.Linear):
        renamed = to_image_classifier(renamed, model.backbone.out_indices[-1])
    else:
        renamed = {f'backbone.{key}': value for key, value in renamed.items()}
    # state_dict() would gather the shards of a sharded model.
    own = dict(model.named_parameters())
    return with_resized_pos_embed(renamed | others, own, 'backbone.pos_embed')


def check_model(
    model: nn.Module, tensors: Mapping[str, Tensor], filename: str, whole: bool
) -> Matching:
    """Check adapted tensors, of which MMEngine would load any part without an error.

    With ``whole``, as for a test, the whole model is required. Otherwise a VMamba backbone is
    required without its output norms; for any other model one tensor suffices.
    """
    names = f'checkpoint {filename!r}', type(model).__name__
    with naming_file(names[0]):
        matching = match_tensors(model.state_dict(), tensors)
    if whole:
        matching.check(*names)
    elif isinstance(getattr(model, 'backbone', None), VMambaNet):
        matching.check(*names, required='backbone.', allow_missing=STAGE_NORMS)
    else:
        matching.check(*names, required=())
    return matching


def check_values(model: nn.Module, tensors: Mapping[str, Tensor], filename: str) -> None:
    """Check the values of adapted tensors for a model that FSDP has sharded.

    Its parameters have other names and shapes than those of a file; its buffers do not.
    """
    buffers = {k.replace('_fsdp_wrapped_module.', ''): v for k, v in model.named_buffers()}
    own = {key: buffers.get(key, value.to('meta')) for key, value in tensors.items()}
    matching = match_tensors(own, tensors, assign=True)
    matching.check(f'checkpoint {filename!r}', type(model).__name__, required=())


def check_backbone(
    model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], assign: bool
) -> None:
    """Check the tensors that a backbone is loaded from, by the names of its own ones."""
    name = type(model).__name__
    if not tensors:
        raise ValueError(
            f'the state dict does not match {name}: no key has the prefix of this backbone; '
            'to rename the tensors, use tools/model_converters/convert_vmamba.py'
        )
    matching = match_tensors(own, tensors, assign)
    matching.check('the state dict', name, allow_missing=STAGE_NORMS)


def rename_for_image_classifier(
    backbone: nn.Module, state_dict: dict[str, Any], prefix: str
) -> None:
    """Rename the tensors of a released classifier for mmpretrain's ImageClassifier, in place.

    mmpretrain calls this on every load. MMEngine's loader passes the whole ``{'model': ...}`` of a
    file. The file of a backbone is refused because the head would stay random.
    """
    inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    content = inside.get('model', inside)
    content = content if isinstance(content, Mapping) else inside
    tensors = without_module({k: v for k, v in content.items() if isinstance(v, Tensor)})
    if not any(key.startswith('layers.') for key in tensors):
        return
    tensors = convert_state_dict(tensors)
    missing = missing_in_classifier(tensors)
    if missing:
        raise ValueError(
            f'the state dict is from a backbone and lacks {", ".join(missing)}; to train a new '
            "head, set the file in the backbone's init_cfg"
        )
    for key in inside:
        del state_dict[prefix + key]
    tensors = to_image_classifier(tensors, backbone.out_indices[-1])
    state_dict.update({prefix + key: value for key, value in tensors.items()})
