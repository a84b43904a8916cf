"""The language model of others under which generated texts are scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PaddedTexts:
    """Texts of similar length, padded on the right, where a causal model does not see it."""

    places: Sequence[int]
    """Index of each text in the sequence that was given."""
    ids: Tensor
    """(texts, width) int64."""
    is_token: Tensor
    """(texts, width) bool."""

    @property
    def lengths(self) -> Tensor:
        """(texts,) tokens of each."""
        return self.is_token.sum(1)


class Judge:
    """A causal language model with its tokenizer, loaded when it is first needed.

    What its repository holds is data: no code of its own runs, and the weights are safetensors.

    Args:
        path: A repository of the Hub or a folder.
        revision: branch, tag or commit of the repository.
        dtype: Of the weights: float32, bfloat16 or float16.
        batch_size: Texts in a batch.
        max_length: Most tokens of a text; at most what the model was made for.
        device: Where the model runs; "auto" is this process's GPU if it has one.

    Raises:
        ValueError: If the dtype is none of the three, or a size is below 1 (``max_length``: 2).
    """

    def __init__(
        self, path: str, *, revision: str | None, dtype: str, batch_size: int, max_length: int, device: str
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if batch_size < 1 or max_length < 2:
            raise ValueError(
                f"batch_size must be at least 1 and max_length at least 2, got {batch_size} and {max_length}"
            )
        self._folder = folder if (folder := Path(path).expanduser()).is_dir() else None
        self._path = path if self._folder is None else str(self._folder)
        self._safely = {"revision": revision or "main", "trust_remote_code": False}
        self._dtype = cast("torch.dtype", getattr(torch, dtype))
        self._batch_size = batch_size
        self._max_length = max_length
        self._device = device

    def check(self) -> None:
        """Read its config and its tokenizer, but not its weights.

        Raises:
            ValueError: If it is not there, or takes fewer tokens than ``max_length``; one line.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self._path, **self._safely)
            if self._folder is not None and not any(self._folder.glob("*.safetensors")):
                raise OSError("no *.safetensors in the folder")
            _ = self.tokenizer
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"no causal language model at path={self._path}, which is a folder with config.json, "
                f"tokenizer and safetensors, or a repository of the Hub: {reason}"
            ) from error
        self._check_length(config)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Its tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._path, **self._safely)

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model in evaluation mode, on its device.

        Raises:
            ValueError: If it takes fewer tokens than ``max_length``.
        """
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            self._path, dtype=self._dtype, use_safetensors=True, **self._safely
        )
        self._check_length(model.config)
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(automatic if self._device == "auto" else self._device).eval()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it."""
        return [self.tokenizer.encode(text, add_special_tokens=False) if text else [] for text in texts]

    def cut(self, ids: Sequence[int]) -> Sequence[int]:
        """The tokens of a text that are scored."""
        return ids[: self._max_length]

    def batches(self, texts: Sequence[Sequence[int]]) -> Iterator[PaddedTexts]:
        """The ids of texts in batches of similar length, the shortest first."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            width = max(len(texts[place]) for place in places)
            rows = [[*texts[place], *[0] * (width - len(texts[place]))] for place in places]
            lengths = torch.tensor([len(texts[place]) for place in places], device=self.model.device)
            is_token = torch.arange(width, device=self.model.device) < lengths[:, None]
            yield PaddedTexts(places, torch.tensor(rows, device=self.model.device), is_token)

    def _check_length(self, config: Any) -> None:
        longest = getattr(config, "max_position_embeddings", self._max_length)
        if self._max_length > longest:
            raise ValueError(f"max_length={self._max_length}, but {self._path} takes {longest} tokens")
