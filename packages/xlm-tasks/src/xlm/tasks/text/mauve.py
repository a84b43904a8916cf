"""MAUVE (Pillutla et al. 2021, arXiv:2102.01454): how close generated and real texts are as a whole."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from xlm.tasks.metrics import Generation
from xlm.tasks.text.judge import Judge

PATH = "openai-community/gpt2-large"
"""The model whose features the paper compares."""


class Mauve:
    """MAUVE of the generated texts against the references of their rows, in (0, 1].

    A text's feature is the last hidden state of its last token under a causal language model. The features
    of both sides are clustered together, and the two histograms compared by the package of the authors.

    ``mauve`` is a function of two whole sets: the authors advise some thousand texts on each side, and values
    are comparable between equal numbers of texts, lengths, models and seeds only. ``mauve_texts`` and
    ``mauve_references`` are the numbers of texts that have a token, the only ones that are compared.

    Args:
        path: The model with its tokenizer: a repository of the Hub or a folder.
        revision: branch, tag or commit of the repository.
        dtype: Of the weights: float32, bfloat16 or float16.
        batch_size: Texts read at once; those of a batch have similar lengths.
        max_length: Most tokens of a text that are read; at most what the model was made for.
        device: Where the model runs; "auto" is this process's GPU if it has one.
        seed: Of the clustering.

    Attributes:
        sums: Numbers of generated texts and of references.
        lists: Their features one after another, (texts * d_model,) float32.

    Raises:
        ValueError: If the dtype is none of the three, or a size is below 1 (``max_length``: 2).
    """

    row_by_row = False  # of a whole set only

    def __init__(
        self,
        path: str = PATH,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
        max_length: int = 1024,
        device: str = "auto",
        seed: int = 25,
    ) -> None:
        self._judge = Judge(
            path,
            revision=revision,
            dtype=dtype,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
        )
        self._seed = seed
        self.reset()

    def check(self, references: Sequence[str]) -> None:
        """Look for the authors' package, the references and the model before the first text is generated.

        Args:
            references: Real texts of the first rows.

        Raises:
            ModuleNotFoundError: If the package is not installed; names the extra.
            ValueError: If the rows have no text, or the model is not there; one line.
        """
        _package()
        if not any(references):
            raise ValueError(
                "MAUVE compares generated texts with the targets of their rows, which have none: set columns "
                "of the loader to [target_ids]"
            )
        self._judge.check()

    def reset(self) -> None:
        """Forget all texts."""
        self.sums = {name: torch.zeros((), dtype=torch.int64) for name in ("generated", "real")}
        # By other names, since the harness keeps sums and lists as attributes of one object.
        self.lists = {f"{name}_features": torch.zeros(0) for name in self.sums}

    def update(self, generations: Sequence[Generation]) -> None:
        """Add the texts and references of more generations; the first call loads the model."""
        for name, column in (("generated", "text"), ("real", "reference")):
            features = self.features([generation[column] for generation in generations])
            self.sums[name] += len(features)
            key = f"{name}_features"
            self.lists[key] = torch.cat((self.lists[key], features.flatten()))

    def compute(self) -> dict[str, float]:
        """The metrics by name; ``mauve`` is 0.0 without texts on both sides."""
        numbers = {name: int(value) for name, value in self.sums.items()}
        value = 0.0
        if all(numbers.values()):
            tables = {name: self.lists[f"{name}_features"].view(n, -1) for name, n in numbers.items()}
            value = _score(tables["generated"], tables["real"], self._seed)
        return {
            "mauve": value,
            "mauve_texts": float(numbers["generated"]),
            "mauve_references": float(numbers["real"]),
        }

    def features(self, texts: Sequence[str]) -> Tensor:
        """Last hidden state of the last token of each text that has one, (texts, d_model) float32."""
        ids = [self._judge.cut(text) for text in self._judge.encode(texts) if text]
        model: Any = self._judge.model
        features = torch.zeros(len(ids), model.config.hidden_size)
        for batch in self._judge.batches(ids):
            with torch.inference_mode():
                hidden: Tensor = model.base_model(
                    input_ids=batch.ids, attention_mask=batch.is_token.long(), use_cache=False
                ).last_hidden_state
            rows = torch.arange(len(batch.places), device=hidden.device)
            features[list(batch.places)] = hidden[rows, batch.lengths - 1].float().cpu()
        return features


def mauve_score(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    model: str = PATH,
    max_length: int = 1024,
    seed: int = 25,
    device: int = -1,
) -> float:
    """MAUVE of generated texts against real ones, in (0, 1], as :class:`Mauve` computes it.

    Args:
        texts: Generated texts.
        references: Real texts of the same kind and length.
        model: The model whose features are compared: a repository of the Hub or a folder.
        max_length: Tokens of a text that are looked at.
        seed: Of the clustering.
        device: Number of the GPU, -1 for the CPU.

    Raises:
        ValueError: If there are no texts on one side.
        ModuleNotFoundError: If the package is not installed; names the extra.
    """
    if not texts or not references:
        raise ValueError(f"MAUVE needs texts on both sides, got {len(texts)} and {len(references)}")
    _package()
    metric = Mauve(model, max_length=max_length, seed=seed, device="cpu" if device < 0 else f"cuda:{device}")
    return _score(metric.features(texts), metric.features(references), seed)


def _package() -> Any:
    try:
        return import_module("mauve")
    except ModuleNotFoundError as error:
        if error.name != "mauve":
            raise
        raise ModuleNotFoundError(
            'MAUVE needs an extra: uv pip install "xlm-tasks[mauve]"', name="mauve"
        ) from None


def _score(generated: Tensor, real: Tensor, seed: int) -> float:
    result = _package().compute_mauve(
        p_features=real.numpy(), q_features=generated.numpy(), seed=seed, verbose=False
    )
    return float(result.mauve)
