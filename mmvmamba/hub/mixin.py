"""Adapter for huggingface_hub's PyTorchModelHubMixin."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from mmvmamba.nn import VMambaNet

from .config import CONFIG
from .folder import WEIGHT_FILES, check_network, load_folder, write_folder
from .model_card import model_card


class HubModel(PyTorchModelHubMixin):
    """A network with the methods of huggingface_hub's PyTorchModelHubMixin.

    Making the mixin a base class of the network would make ``import mmvmamba.nn`` require
    huggingface_hub, and would take the config from the arguments of ``__init__``, which a network
    may outgrow, e.g. by ``reset_classifier``.

    Args:
        net (VMambaNet): The network.
    """

    def __init__(self, net: VMambaNet) -> None:
        self.net = net

    def save_pretrained(self, *args: Any, **kwargs: Any) -> str | None:
        """Check the network before the mixin removes an earlier config, and save it."""
        check_network(self.net)
        return super().save_pretrained(*args, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(self.net, save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        net_class: type[VMambaNet] = VMambaNet,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> 'HubModel':
        """Download the files of a repository, and load them as those of a local folder."""
        options: dict[str, Any] = dict(
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        # Both files are in the folder of one commit.
        config = hf_hub_download(model_id, CONFIG, **options)
        first, other = WEIGHT_FILES
        try:
            hf_hub_download(model_id, first, **options)
        except EntryNotFoundError as error:
            try:
                hf_hub_download(model_id, other, **options)
            except EntryNotFoundError:
                raise error from None
        return cls(load_folder(Path(config).parent, net_class, **overrides))

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """Return the card of :func:`mmvmamba.hub.model_card`, which takes the arguments."""
        return ModelCard(model_card(self.net, **kwargs))
