"""Saving and loading: safetensors beside a ``config.json``, in a folder or on the Hugging Face Hub.

This is huggingface_hub's mixin but for three things. Weights above a size are split into several files.
Weights that are missing, left over or of another shape are an error that names each; the mixin would leave
random weights in their place. And pickles are never read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from huggingface_hub import PyTorchModelHubMixin, save_torch_model, snapshot_download
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
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        state = {name: value for file in weight_files(folder) for name, value in load_file(file).items()}
        model.load_state_dict(state | dict(tied_weights(model, state)), strict=strict)
        return model.to(map_location).eval()


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
