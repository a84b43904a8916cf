"""Metrics of generated texts against the language they should follow: exact probabilities, no judge."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from xlm.tasks.metrics import Generation
from xlm.tasks.synthetic.languages import Language, draw_texts, estimate_entropy, length_probs, log_probs

_NO_TOKEN = -1


class LanguageMetrics:
    """Compares generated texts with a language. Probabilities are exact, nats are per text.

    - ``impossible``: fraction of texts of probability 0; 1 - ``impossible`` is the precision.
    - ``cross_entropy``: mean of -log p(x) over the possible texts, with the standard error
      ``cross_entropy_error``; 0.0 if there is none.
    - ``entropy``: of the language, the value of the above for its own texts. ``entropy_error`` is its
      standard error, 0 where the entropy is exact. A smaller cross entropy means too little variety: the KL
      divergence also needs the sampler's own likelihood.
    - ``reference_cross_entropy``: mean of -log p over the references, where the rows have any. The ``nll`` of
      a model on the same rows minus this is KL(language || model), or an upper bound of it.
    - ``tokens`` and ``expected_tokens``: mean length of the texts, and of the language.
    - ``length_distance``: total variation between the lengths of the texts and the exact distribution.
    - ``covered``: sum of p over the different texts (recall, where the language is small).
    - ``drawn_length_distance`` and ``drawn_covered``: the same of as many texts drawn from the language.

    Attributes:
        sums: Empty.
        lists: ``texts``, (texts, 3) float64: log p, length, and a hash that identifies the text; and
            ``references``, the same of the references that are not empty.

    Args:
        language: The distribution that the texts should follow.
    """

    def __init__(self, language: Language) -> None:
        self._language = language
        self._entropy: tuple[float, float] | None = None
        self.sums: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all generations."""
        self.lists = {name: torch.zeros(0, 3, dtype=torch.float64) for name in ("texts", "references")}

    def update(self, generations: Sequence[Generation]) -> None:
        """Score more generations."""
        texts = [_tokens(generation["text"]) for generation in generations]
        references = [_tokens(generation["reference"]) for generation in generations]
        for name, added in (("texts", texts), ("references", [text for text in references if text])):
            self.lists[name] = torch.cat([self.lists[name], self._describe(added)])

    def compute(self) -> dict[str, float]:
        """The metrics by name; without any text, those of texts are 0.0."""
        texts = self.lists["texts"]
        drawn = self._describe(draw_texts(self._language, len(texts), np.random.default_rng(0)))
        lengths = length_probs(self._language)
        nats = -texts[:, 0][texts[:, 0] > -torch.inf]
        if self._entropy is None:
            self._entropy = estimate_entropy(self._language)
        return {
            "impossible": 1 - len(nats) / max(len(texts), 1) if len(texts) else 0.0,
            "cross_entropy": _mean(nats),
            "cross_entropy_error": float(nats.std() / len(nats) ** 0.5) if len(nats) > 1 else 0.0,
            "entropy": self._entropy[0],
            "entropy_error": self._entropy[1],
            "reference_cross_entropy": _mean(-self.lists["references"][:, 0]),
            "tokens": _mean(texts[:, 1]),
            "expected_tokens": float(lengths @ torch.arange(len(lengths), dtype=torch.float64)),
            "length_distance": _length_distance(texts, lengths),
            "drawn_length_distance": _length_distance(drawn, lengths),
            "covered": _covered(texts),
            "drawn_covered": _covered(drawn),
        }

    def text_log_probs(self, texts: Sequence[str], /) -> Tensor:
        """Exact log p of whole texts, (texts,) float64 in nats, -inf for impossible ones.

        The card of a result adds it to the ``nll`` of a model or sampler on texts of the language: the mean
        is KL(language || model), or an upper bound of it where the likelihood is a bound.
        """
        return log_probs(self._language, [_tokens(text) for text in texts])

    def _describe(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(texts, 3) as in ``lists``."""
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.float64)
        keys = torch.tensor([_key(text) for text in texts], dtype=torch.float64)
        return torch.stack([log_probs(self._language, texts), lengths, keys], dim=1)


def _tokens(text: str) -> list[int]:
    """The numbers of a text; a token that belongs to no language for anything else."""
    return [int(name) if name.isdecimal() else _NO_TOKEN for name in text.split()]


def _key(text: Sequence[int]) -> int:
    """A hash of 53 bits, which float64 holds exactly."""
    digest = blake2b(" ".join(map(str, text)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 11


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _length_distance(texts: Tensor, expected: Tensor) -> float:
    """Half of the sum of |observed - expected|; longer texts than any of the language count as one length."""
    if len(texts) == 0:
        return 0.0
    counts = torch.bincount(texts[:, 1].long().clamp(max=len(expected)), minlength=len(expected) + 1)
    observed = counts / len(texts)
    return float((observed - torch.nn.functional.pad(expected, (0, 1))).abs().sum() / 2)


def _covered(texts: Tensor) -> float:
    """Sum of p over the different texts."""
    probabilities = {key: log_prob for log_prob, _, key in texts.tolist()}
    return float(torch.tensor(list(probabilities.values()), dtype=torch.float64).exp().sum())
