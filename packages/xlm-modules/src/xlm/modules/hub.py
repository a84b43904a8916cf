"""Saving and loading: safetensors beside a ``config.json``, in a folder or on the Hugging Face Hub.

This is huggingface_hub's mixin but for four things. Weights above a size are split into several files.
Weights that are missing, left over or of another shape are an error that names each; the mixin would leave
random weights in their place. Pickles are never read. And a folder that is not there is called so.

Needs the extra ``hub`` (``xlm-modules[hub]``); nothing else here imports this module.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, save_torch_model, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from torch import Tensor, nn


class HubModel(PyTorchModelHubMixin):
    """Gives a network ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``."""

    max_shard_size = "5GB"
    """Size of a file of weights from which on they are split."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        save_torch_model(self, save_directory, max_shard_size=self.max_shard_size)
        kind = {"architectures": [type(self).__name__], "model_type": type(self).__module__.split(".")[0]}
        arguments = self._hub_mixin_config if isinstance(self._hub_mixin_config, dict) else {}
        (save_directory / "config.json").write_text(json.dumps(kind | arguments, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Make the network that a folder or a repository of the Hub holds, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or USER/NAME on the Hub.
            force_download: Whether to download what is in the cache, too.
            token: For the Hub; None for that of ``hf auth login``.
            cache_dir: Where downloads are kept; None for the Hub's cache.
            local_files_only: Whether to take a repository from the cache only.
            revision: Branch, tag or commit of the repository; None for main.
            **model_kwargs: ``map_location`` and ``strict`` as in torch; arguments of the network, which come
                before those that ``config.json`` holds.

        Raises:
            ValueError: If there is no such folder, or it has no ``config.json`` and no arguments are given.
            FileNotFoundError: If it has no weights.
            RuntimeError: If weights are missing, left over or of another shape, naming each.
        """
        return super().from_pretrained(
            find(pretrained_model_name_or_path),
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
            **model_kwargs,
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: object,
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            downloaded = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns="*.safetensors",
            )
            folder = Path(downloaded)
        files = weight_files(folder)
        if not model_kwargs:
            raise ValueError(f"{model_id} has no config.json with the arguments of {cls.__name__}")
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        state = {name: value for file in files for name, value in load_file(file).items()}
        model.load_state_dict(state | dict(tied_weights(model, state)), strict=strict)
        return model.to(map_location).eval()


def find(place: str | Path) -> str:
    """The folder that is meant, or else the repository.

    Raises:
        ValueError: If there is no such folder and no repository can have this name.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists():
        raise ValueError(f"{place} is a file; the folder that holds it is wanted")
    try:
        if isinstance(place, str):
            validate_repo_id(place)
            return place
    except HFValidationError:  # its message is about the names of repositories
        pass
    raise ValueError(f"{place}: there is no such folder (and a repository of the Hub is called USER/NAME)")


def weight_files(folder: Path) -> list[Path]:
    """Files of a network's weights in ``folder``: one, or the parts of a large network.

    Raises:
        FileNotFoundError: If there is none.
    """
    single = folder / "model.safetensors"
    parts = sorted(folder.glob("model-?????-of-?????.safetensors"))
    if not single.is_file() and not parts:
        raise FileNotFoundError(f"{folder} has no model.safetensors and no model-NNNNN-of-NNNNN.safetensors")
    return [single] if single.is_file() else parts


def tied_weights(model: nn.Module, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights that ``state`` lacks because they are another name of one that it has (tied embeddings)."""
    own = model.state_dict()
    names = {_place(own[name]): name for name in state.keys() & own.keys()}
    for name in own.keys() - state.keys():
        if (other := names.get(_place(own[name]))) is not None:
            yield name, state[other]


def _place(weight: Tensor) -> tuple[int, torch.Size]:
    return weight.data_ptr(), weight.shape
