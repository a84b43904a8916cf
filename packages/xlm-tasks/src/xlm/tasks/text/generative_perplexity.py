"""How likely generated texts are under another language model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from xlm.tasks.metrics import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class GenerativePerplexity:
    """Perplexity of generated texts under a causal language model, as the literature reports it.

    The text of each generation is tokenised with the tokenizer of the scoring model, without special tokens
    around it. Each token but a text's first, which nothing stands before, is scored:
    ``generative_perplexity`` = exp(sum of -log p / number of scored tokens), over all texts.

    Beside it: ``scored`` and ``unscored``, shares of texts with and without at least two tokens;
    ``truncated_tokens``, share of tokens behind ``max_length``, which are not scored. Compare perplexities
    only between runs that agree in these, in the model, and in the length and the entropy of the texts:
    repeated words have a low perplexity.

    Args:
        path: The model with its tokenizer: a repository of the Hub or a folder.
        revision: branch, tag or commit of the repository.
        dtype: Of the weights: float32, bfloat16 or float16. Logits are scored in float32.
        batch_size: Texts scored at once.
        max_length: Most tokens of a text that are scored; at most what the model was made for.
        device: Where the model runs; "auto" is this process's GPU if it has one.

    Attributes:
        sums: The state, float64 scalars.

    Raises:
        ValueError: If the dtype is none of the three, or a size is below 1 (``max_length``: 2).
    """

    row_by_row = False  # each text would be scored a second time, alone
    DTYPES = ("float32", "bfloat16", "float16")

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        max_length: int = 1024,
        device: str = "auto",
    ) -> None:
        if dtype not in self.DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(self.DTYPES)}, got {dtype!r}")
        if batch_size < 1 or max_length < 2:
            raise ValueError(
                f"batch_size must be at least 1 and max_length at least 2, got {batch_size} and {max_length}"
            )
        self._path = str(folder) if (folder := Path(path).expanduser()).is_dir() else path
        self._revision = revision
        self._dtype = cast("torch.dtype", getattr(torch, dtype))
        self._batch_size = batch_size
        self._max_length = max_length
        self._device = device
        self._scorer: tuple[PreTrainedModel, PreTrainedTokenizerFast] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all generations."""
        names = ("nll", "scored_tokens", "tokens", "truncated_tokens", "texts", "scored")
        self.sums: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in names}

    def update(self, generations: Sequence[Generation]) -> None:
        """Scores more generations; the first call loads the model."""
        model, tokenizer = self._load()
        texts = [
            tokenizer.encode(generation["text"], add_special_tokens=False) if generation["text"] else []
            for generation in generations
        ]
        kept = [ids[: self._max_length] for ids in texts]
        scored = sorted((ids for ids in kept if len(ids) > 1), key=len)
        self.sums["texts"] += len(texts)
        self.sums["scored"] += len(scored)
        self.sums["tokens"] += sum(map(len, texts))
        self.sums["truncated_tokens"] += sum(map(len, texts)) - sum(map(len, kept))
        self.sums["scored_tokens"] += sum(len(ids) - 1 for ids in scored)
        for start in range(0, len(scored), self._batch_size):
            self.sums["nll"] += _nll(model, scored[start : start + self._batch_size])

    def compute(self) -> dict[str, float]:
        """The metrics by name; 0.0 where nothing was scored."""
        sums = {name: float(value) for name, value in self.sums.items()}
        texts, tokens = max(sums["texts"], 1.0), max(sums["tokens"], 1.0)
        per_token = sums["nll"] / max(sums["scored_tokens"], 1.0)
        return {
            "generative_perplexity": math.exp(min(per_token, 700.0)) if sums["scored_tokens"] else 0.0,
            "scored": sums["scored"] / texts,
            "unscored": (sums["texts"] - sums["scored"]) / texts,
            "truncated_tokens": sums["truncated_tokens"] / tokens,
        }

    def _load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
        if self._scorer is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            # What the repository holds is data: no code of its own, no pickles.
            safely = {"revision": self._revision or "main", "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(self._path, **safely)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._path, dtype=self._dtype, use_safetensors=True, **safely
            )
            longest = getattr(model.config, "max_position_embeddings", self._max_length)
            if self._max_length > longest:
                raise ValueError(f"max_length={self._max_length}, but {self._path} takes {longest} tokens")
            device = (
                ("cuda" if torch.cuda.is_available() else "cpu") if self._device == "auto" else self._device
            )
            self._scorer = model.to(device).eval(), tokenizer
        return self._scorer


def _nll(model: "PreTrainedModel", texts: Sequence[Sequence[int]]) -> float:
    """Sum over texts and tokens of -log p(token | tokens before it), in nats.

    The padding stands on the right, where a causal model does not see it.
    """
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=model.device)
    lengths = torch.tensor([len(text) for text in texts], device=model.device)
    is_token = torch.arange(width, device=model.device) < lengths[:, None]
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, attention_mask=is_token.long(), use_cache=False).logits
        losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return float((losses.double() * is_token[:, 1:]).sum())
