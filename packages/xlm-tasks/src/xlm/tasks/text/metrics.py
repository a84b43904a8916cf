"""Metrics of generated text that need no other text and no other model: lengths, diversity, repetition."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import Tensor

from xlm.tasks.metrics import Generation


class TextMetrics:
    """Describes generated texts by their tokens.

    - ``tokens``: mean length in tokens; ``empty``: share of texts without a token.
    - ``token_entropy``: entropy in nats of the tokens within a text (of the distribution that draws one of
      its tokens at random), averaged over the texts that are not empty. The literature reports it beside the
      generative perplexity, since a text that repeats itself has a low perplexity and a low entropy.
    - ``distinct_1``, ``distinct_2``, ``distinct_3``: different n-grams divided by all n-grams, both counted
      within each text and then summed.
    - ``repeated_4``: share of 4-grams that stood before in the same text.

    Everything is a sum over texts, so the metrics do not depend on batches or processes.

    Attributes:
        sums: The state, float64 scalars.
    """

    DISTINCT = (1, 2, 3)
    REPEATED = 4

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all generations."""
        sizes = (*self.DISTINCT, self.REPEATED)
        names = [f"{kind}_{size}" for size in sizes for kind in ("different", "all")]
        self.sums: dict[str, Tensor] = {
            name: torch.zeros((), dtype=torch.float64)
            for name in ("texts", "empty", "tokens", "entropy", *names)
        }

    def update(self, generations: Sequence[Generation]) -> None:
        """Count more generations."""
        for generation in generations:
            ids = generation["ids"]
            self._add("texts", 1)
            self._add("empty", not ids)
            self._add("tokens", len(ids))
            self._add("entropy", token_entropy(ids))
            for size in (*self.DISTINCT, self.REPEATED):
                grams = list(zip(*(ids[start:] for start in range(size)), strict=False))
                self._add(f"different_{size}", len(set(grams)))
                self._add(f"all_{size}", len(grams))

    def compute(self) -> dict[str, float]:
        """The metrics by name; 0.0 where there is nothing to count."""
        sums = {name: float(value) for name, value in self.sums.items()}
        distinct = {
            size: _ratio(sums, f"different_{size}", f"all_{size}") for size in (*self.DISTINCT, self.REPEATED)
        }
        return {
            "tokens": _ratio(sums, "tokens", "texts"),
            "empty": _ratio(sums, "empty", "texts"),
            "token_entropy": sums["entropy"] / max(sums["texts"] - sums["empty"], 1.0),
            **{f"distinct_{size}": distinct[size] for size in self.DISTINCT},
            f"repeated_{self.REPEATED}": 1 - distinct[self.REPEATED] if sums[f"all_{self.REPEATED}"] else 0.0,
        }

    def _add(self, name: str, value: float) -> None:
        self.sums[name] += value


def token_entropy(ids: Sequence[int]) -> float:
    """Entropy in nats of a token drawn at random from a text; 0.0 for an empty one."""
    # sum of -(n/N) log(n/N) = log N - sum of n log n, divided by N
    counted = sum(count * log(count) for count in Counter(ids).values())
    return log(len(ids)) - counted / len(ids) if ids else 0.0


def _ratio(sums: Mapping[str, float], part: str, whole: str) -> float:
    return sums[part] / max(sums[whole], 1.0)
