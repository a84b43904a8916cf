"""What every language with a known distribution is, and what follows from its partition function.

All questions about a language have one answer. With a weight w_i(s) for each symbol s in each cell i, the
*partition function*

    Z(w) = sum over texts x of p(x) prod_i w_i(x_i)

is the probability of a text (weights 0 and 1 that allow nothing else), the mass of all texts up to a length
(weights 1), and its derivatives are the conditional probabilities of :func:`xlm.tasks.synthetic.marginals`.
It is computed by the forward algorithm or the inside algorithm, in float64.

The languages are conditioned on the length: texts of more than ``max_length`` tokens have probability 0, and
the others are divided by the mass of all others. No text is truncated, and none is empty.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLITS = ("train", "val", "test")

SLICE = 1024
"""Rows of a partition function computed at a time, which bounds the memory."""

_DRAWS = 4096
"""Texts drawn at a time. The rows depend on this number as they do on the seed."""


class Language(Protocol):
    """A distribution over texts: sequences of 1 to ``max_length`` tokens in {0, ..., num_tokens - 1}.

    A text is laid out in ``max_length + 1`` cells: its tokens, the symbol ``num_tokens`` for the end, and the
    symbol ``num_tokens + 1`` for the padding behind it.
    """

    @property
    def num_tokens(self) -> int:
        """V, the number of different tokens."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        ...

    @property
    def entropy(self) -> float | None:
        """Exact entropy in nats per text; None where there is no closed form."""
        ...

    def partition(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Compute Z before the conditioning on the length, differentiable.

        Args:
            weights: Not negative, float64, (rows, max_length + 1, num_tokens + 2).

        Returns:
            z and log_scale with Z = z * exp(log_scale), (rows,) each. The scale has no gradient, and with it
            no z underflows.
        """
        ...

    def draw(self, count: int, generator: np.random.Generator) -> list[list[int]]:
        """Draw ``count`` texts by inversion and return those of at most ``max_length`` tokens, in order."""
        ...


class TextRow(TypedDict):
    """One text of a language."""

    tokens: list[int]


def language_rows(
    split: str, *, language: Language, num_rows: Mapping[str, int], seed: int
) -> Iterator[TextRow]:
    """Draw the texts of one split, independently of each other.

    Texts may be in several splits: the distribution is the target, not a set of texts. A longer split begins
    with the texts of a shorter one.

    Args:
        split: "train", "val" or "test".
        language: The distribution.
        num_rows: Number of texts of each split; the other splits' numbers may be missing.
        seed: Not negative; independent of the seed of the language.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS or split not in num_rows:
        raise ValueError(
            f"unknown split {split!r}: the splits are {', '.join(SPLITS)}, "
            f"num_rows gives {', '.join(num_rows) or 'none'}"
        )
    generator = np.random.default_rng([seed, SPLITS.index(split)])
    for text in draw_texts(language, num_rows[split], generator):
        yield {"tokens": text}


class EncodedText(TypedDict):
    """A row as ids."""

    target_ids: list[int]


class Encoder(Protocol):
    """The part of a tokenizer that ``encode_tokens`` needs."""

    def encode(self, text: str) -> list[int]:
        """Turn names separated by spaces into ids, one per name."""
        ...


def encode_tokens(row: TextRow, tokenizer: Encoder) -> EncodedText:
    """Write a text as ids, one per token, without special tokens."""
    return {"target_ids": tokenizer.encode(" ".join(map(str, row["tokens"])))}


def draw_texts(language: Language, count: int, generator: np.random.Generator) -> list[list[int]]:
    """Draw texts; those that are too long are drawn again, which conditions on the length."""
    texts: list[list[int]] = []
    while len(texts) < count:
        texts += language.draw(_DRAWS, generator)
    return texts[:count]


def check_sizes(num_tokens: int, mean_length: float, max_length: int) -> None:
    """Check the sizes that all languages have; raise a ValueError that names the wrong one."""
    require_that(num_tokens >= 2, "num_tokens", num_tokens, "at least 2")
    require_that(mean_length > 2, "mean_length", mean_length, "above 2")
    require_that(max_length >= 1, "max_length", max_length, "at least 1")


def require_that(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names the argument if the condition does not hold."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_mass(language: Language) -> None:
    """Raise a ValueError if every text has more than ``max_length`` tokens."""
    if log_mass(language) == -inf:
        raise ValueError(f"no text has at most max_length={language.max_length} tokens: increase max_length")


def softmax(sharpness: float, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """Random probabilities softmax(sharpness * z), z ~ N(0, 1), over the last axis."""
    weights = np.exp(sharpness * generator.standard_normal(shape))
    return weights / weights.sum(-1, keepdims=True)


def log_mass(language: Language) -> float:
    """Logarithm of the mass of all texts of at most ``max_length`` tokens, before the conditioning."""
    shape = (1, language.max_length + 1, language.num_tokens + 2)
    # On the CPU also where the networks are made elsewhere.
    z, log_scale = language.partition(torch.ones(shape, dtype=torch.float64, device="cpu"))
    return float(z.log() + log_scale)


def layout(language: Language, texts: Sequence[Sequence[int]]) -> Tensor:
    """Symbols of texts in their cells, see ``Language``.

    Args:
        language: The texts have at most its ``max_length`` tokens, all of them its own.
        texts: One for each row.

    Returns:
        (rows, max_length + 1) int64.
    """
    end, pad = language.num_tokens, language.num_tokens + 1
    width = language.max_length + 1
    rows = [[*text, end, *[pad] * (width - 1 - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), width)


def one_hot(language: Language, cells: Tensor) -> Tensor:
    """Weights that allow the given symbols (rows, max_length + 1) only."""
    return torch.nn.functional.one_hot(cells, language.num_tokens + 2).double()


def log_probs(language: Language, texts: Sequence[Sequence[int]]) -> Tensor:
    """Exact log-probability of each text in nats.

    Args:
        language: The distribution.
        texts: Any sequences of integers; those that are no text of the language have -inf.

    Returns:
        (texts,) float64.
    """
    allowed = range(language.num_tokens)
    found = torch.full((len(texts),), -inf, dtype=torch.float64)
    fitting = [
        index
        for index, text in enumerate(texts)
        if len(text) <= language.max_length and all(token in allowed for token in text)
    ]
    # Texts of about the same length together: a grammar then computes no spans beyond the longest.
    fitting.sort(key=lambda index: len(texts[index]))
    for start in range(0, len(fitting), SLICE):
        rows = fitting[start : start + SLICE]
        z, log_scale = language.partition(one_hot(language, layout(language, [texts[row] for row in rows])))
        found[rows] = z.log() + log_scale
    return found - log_mass(language)


def length_probs(language: Language) -> Tensor:
    """Exact distribution of the number of tokens, (max_length + 1,) float64."""
    lengths = range(1, language.max_length + 1)
    cells = layout(language, [[0] * length for length in lengths])
    weights = one_hot(language, cells)
    weights[..., : language.num_tokens] = (cells < language.num_tokens).double().unsqueeze(-1)
    z, log_scale = language.partition(weights)
    return torch.cat([z.new_zeros(1), z * (log_scale - log_mass(language)).exp()])


def estimate_entropy(language: Language, num_texts: int = 5000) -> tuple[float, float]:
    """Entropy in nats per text, and the standard error of this estimate.

    Returns:
        The exact entropy and 0 where there is a closed form; otherwise the mean of -log p over texts drawn
        with a fixed seed.
    """
    if language.entropy is not None:
        return language.entropy, 0.0
    nats = -log_probs(language, draw_texts(language, num_texts, np.random.default_rng(0)))
    return float(nats.mean()), float(nats.std() / num_texts**0.5)
