"""Networks that are tables or exact, and batches of enumerated states, for tests of the package's parts."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlm.modules import LogLinear
from xlm_udlm import UDLMPrediction, UDLMPredictor, UDLMPromptBatch, UDLMSampler
from xlm_udlm.samplers_udlm import Step

from .exact_udlm import Array, Prediction, State, as_array, noised, posterior, sampled, texts

PAD, BOS, FIRST = range(3)
"""Ids of rows without EOS: token number v of :mod:`exact_udlm` is id FIRST + v."""


class AsNetwork(nn.Module):
    """A prediction as a network: rows are [BOS] and cells, whose state and noise are looked up.

    Args:
        predict: The prediction of K tokens.
        k: K.
    """

    def __init__(self, predict: Prediction, k: int) -> None:
        super().__init__()
        self.predict, self.k = predict, k
        self.alphas: list[float] = []
        """alpha of each call of the network, if it is the same in all rows."""
        self.found: dict[tuple[State, float], Array] = {}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, noise: Tensor, *, positions: Tensor
    ) -> Tensor:
        assert (input_ids[:, 0] == BOS).all()
        alphas: list[float] = (-noise).exp().tolist()
        self.alphas.append(alphas[0])
        rows = [
            self._look_up(tuple(ids), alpha)
            for ids, alpha in zip((input_ids[:, 1:] - FIRST).tolist(), alphas, strict=True)
        ]
        found = torch.tensor(np.array(rows)).log()
        rest = found.new_full((*found.shape[:2], FIRST), 7.0)  # never looked at
        logits = torch.cat([rest, found], dim=2)
        logits = torch.cat([logits[:, :1], logits], dim=1)
        return logits.flatten(0, 1)[positions]

    def _look_up(self, state: State, alpha: float) -> Array:
        key = state, round(alpha, 12)
        if key not in self.found:
            self.found[key] = self.predict(state, alpha)
        return self.found[key]


def table_prediction(length: int, k: int, seed: int) -> Prediction:
    """Any network at all, without the time, so that each state is looked up once."""
    table = np.random.default_rng(seed).normal(size=(k**length, length, k))

    def predict(state: State, alpha: float) -> Array:
        code = sum(token * k**place for place, token in enumerate(state))
        weights = np.exp(table[code])
        return weights / weights.sum(1, keepdims=True)

    return predict


def prompt_batch(rows: int, length: int) -> UDLMPromptBatch:
    ids = torch.full((rows, 1 + length), PAD)
    ids[:, 0] = BOS
    free = ids != BOS
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(free),
        "free": free,
        "may_end": torch.zeros_like(free),
        "target_start": torch.ones(rows, dtype=torch.int64),
    }


def drawn_texts(prediction: UDLMPrediction) -> list[State]:
    return [
        tuple(token - FIRST for token in ids[:length])
        for ids, length in zip(prediction.ids.tolist(), prediction.lengths.tolist(), strict=True)
    ]


def as_distribution(masses: Array, length: int, k: int) -> dict[State, float]:
    return dict(zip(texts(length, k), masses.tolist(), strict=True))


def standard_error(values: Tensor | Sequence[float]) -> float:
    table = torch.as_tensor(values)
    return float(table.std()) / math.sqrt(len(table))


K, LENGTH = 3, 2
LINE = LogLinear(eps=0.0)
TOKENS: dict[str, Any] = {"vocab_size": FIRST + K, "pad_id": PAD, "eos_id": None, "suppressed_ids": [BOS]}


def predictor(sampler: UDLMSampler, **changes: Any) -> UDLMPredictor:
    options: dict[str, Any] = {"schedule": LINE, **TOKENS, **changes}
    return UDLMPredictor(sampler=sampler, **options)


def chain(predict: Prediction, steps: list[Step], length: int = LENGTH, k: int = K) -> Array:
    """Distribution of the states after the steps, with kernels written out."""
    mass = np.full(k**length, 1 / k**length)
    for step in steps:
        alpha_t, alpha_s = step.alpha_t, step.alpha_s

        def kernel(z: int, p: Array, _: float, __: float, step: Step = step) -> Array:
            d = p * noised(z, step.alpha_t, k)
            d /= d.sum()
            if step.greedy:
                return np.eye(k)[d.argmax()]
            again = step.alpha_s * d + (1 - step.alpha_s) / k
            return step.kappa * posterior(z, p, step.alpha_t, step.alpha_s) + (1 - step.kappa) * again

        if step.gibbs:
            mass = gibbs(predict, mass, alpha_s, length, k)
        else:
            mass = sampled(predict, length, k, [alpha_t, alpha_s], kernel, start=mass)
    return mass


def gibbs(predict: Prediction, mass: Array, alpha: float, length: int, k: int) -> Array:
    """One cell, chosen uniformly, given the others."""
    states = texts(length, k)
    after = dict.fromkeys(states, 0.0)
    for state, part in zip(states, mass, strict=True):
        p = predict(state, alpha)
        for cell, token in itertools.product(range(length), range(k)):
            moved = (*state[:cell], token, *state[cell + 1 :])
            after[moved] += part / length * (alpha * p[cell, token] + (1 - alpha) / k)
    return as_array(after)
