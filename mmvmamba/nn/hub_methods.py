"""Methods that save a network in a folder of the Hugging Face Hub and load it from one."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

    from .network import VMambaNet

#: timm's prefixes for folder names.
_LOCAL, _HUB = 'local-dir:', 'hf-hub:'
_REPO_ID = re.compile(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', re.ASCII)


class HubMethods(nn.Module):
    """The interface of huggingface_hub's models, a base class of :class:`mmvmamba.nn.VMambaNet`."""

    #: timm's settings, including preprocessing; only set on networks loaded from a folder.
    pretrained_cfg: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Load a network from a local folder or from the Hugging Face Hub.

        A local folder requires only mmvmamba. Folders written by timm and transformers are also
        supported.

        Args:
            pretrained_model_name_or_path (str | PathLike): A folder, or the name of a repository on
                the Hub such as 'owner/name'. timm's names 'local-dir:FOLDER' and
                'hf-hub:OWNER/NAME' (optionally with '@REVISION') are also allowed.
            revision (str, optional): Branch, tag or commit on the Hub. Defaults to None, main.
            cache_dir (str | PathLike, optional): Where downloads are cached. Defaults to None,
                huggingface_hub's folder.
            force_download (bool): Whether to download again even if cached. Defaults to False.
            local_files_only (bool): Whether to use only earlier downloads. Defaults to False.
            token (str | bool, optional): Access token of the Hub. Defaults to None, the saved one.
            **overrides: Arguments of the network that replace the saved ones. A different
                ``num_classes`` creates a new last layer, and different ``in_channels`` (or
                ``in_chans``) adapt the first convolution. ``out_indices`` or
                ``features_only=True`` load a classifier as a backbone.

        Returns:
            VMambaNet: The network in eval mode, with ``class_names`` if they were saved.

        Raises:
            FileNotFoundError: If the folder or one of its files does not exist.
            ImportError: If huggingface_hub is not installed and the network is not in a folder.
            ValueError: If the folder contains another network, its weights do not match or are
                damaged, or a backbone is given ``num_classes`` or ``global_pool``.
            huggingface_hub.errors.HfHubHTTPError: If the Hub has no such repository, revision or
                file, denies access, or fails. A LocalEntryNotFoundError means that it cannot be
                reached and that the cache has no such file.
            huggingface_hub.errors.HFValidationError: If the name of the repository is malformed.
        """
        from mmvmamba.hub.folder import load_folder

        name = os.path.expanduser(os.fspath(pretrained_model_name_or_path))
        is_text = isinstance(pretrained_model_name_or_path, str)
        is_on_hub = is_text and _REPO_ID.fullmatch(name) and not os.path.isdir(name)
        if is_text and name.startswith(_LOCAL):
            name = os.path.expanduser(name.removeprefix(_LOCAL))
        elif is_text and name.startswith(_HUB):
            name, _, given = name.removeprefix(_HUB).partition('@')
            is_on_hub, revision = True, given or revision
        net_class = cast('type[VMambaNet]', cls)
        if not is_on_hub:
            net = load_folder(name, net_class, **overrides)
        else:
            options = dict(revision=revision, cache_dir=cache_dir, token=token, net_class=net_class)
            net = (
                import_hub_model('from_pretrained')
                .from_pretrained(
                    name,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    **options,
                    **overrides,
                )
                .net
            )
        return cast('Self', net.eval())

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Write ``config.json``, ``model.safetensors`` and a model card into a folder.

        :meth:`from_pretrained`, ``mmvmamba.create_model``, timm and transformers read them.

        Args:
            save_directory (str | PathLike): The folder, created if needed. An existing README.md
                is kept.
            **kwargs: The other arguments of huggingface_hub's ``save_pretrained``:
                ``push_to_hub``, ``repo_id`` and ``model_card_kwargs``, which are arguments of
                :func:`mmvmamba.hub.model_card`.

        Raises:
            ImportError: If huggingface_hub or safetensors is not installed.
            ValueError: If layers were replaced or removed after the network was built, or the
                number of ``class_names`` is wrong.
        """
        return import_hub_model('save_pretrained')(self).save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Save the network and upload it to the Hugging Face Hub.

        Args:
            repo_id (str): Name of the repository, such as 'owner/name'; it is created if needed.
            **kwargs: The other arguments of huggingface_hub's ``push_to_hub``: ``private``,
                ``token``, ``branch``, ``commit_message``, ``create_pr``, ...

        Returns:
            CommitInfo: The uploaded commit, with its URL.

        Raises:
            ImportError: If huggingface_hub or safetensors is not installed.
            ValueError: As in :meth:`save_pretrained`.
        """
        return import_hub_model('push_to_hub')(self).push_to_hub(repo_id, **kwargs)


def is_hub_name(name: str) -> bool:
    """Return True for timm's names of folders, 'local-dir:FOLDER' and 'hf-hub:OWNER/NAME'."""
    return name.startswith((_LOCAL, _HUB))


def import_hub_model(needed_by: str) -> Any:
    """Import the class of ``mmvmamba.hub.mixin``, which needs huggingface_hub, when it is needed.

    Raises:
        ImportError: If huggingface_hub or safetensors is not installed.
    """
    try:
        import safetensors.torch  # noqa: F401

        from mmvmamba.hub.mixin import HubModel
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{needed_by} requires {error.name}, which is not installed: pip install '
            'huggingface_hub safetensors'
        ) from error
    return HubModel
