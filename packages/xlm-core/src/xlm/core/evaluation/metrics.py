"""Metrics of the harness: those of every family, and the adapter for other accumulators."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
import torchmetrics
from torch import Tensor
from typing_extensions import override

from xlm.core.config.errors import XLMError
from xlm.core.protocols import Likelihood, LossOutput, Prediction, SamplerLikelihood

UpdateT = TypeVar("UpdateT")

_NEAR_TIE = 1e-5
"""Distance of two scores in float32 that another shape of the batch can reverse."""


class SummedMetric(torchmetrics.Metric, Generic[UpdateT]):
    """A plain accumulator as a torchmetrics metric, so that its sums are reduced over ranks.

    Args:
        accumulator: An object with ``sums``, ``reset()``, ``update(value)`` and ``compute()``; and optionally
            ``lists``, whose tensors are concatenated along the first axis.
    """

    full_state_update = False

    def __init__(self, accumulator: Any) -> None:
        super().__init__()
        self.accumulator = accumulator
        self.names = list(accumulator.sums)
        for name, value in accumulator.sums.items():
            self.add_state(name, default=torch.zeros_like(value), dist_reduce_fx="sum")
        self.lists: dict[str, Tensor] = dict(getattr(accumulator, "lists", {}))
        for name in self.lists:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @override
    def update(self, value: UpdateT) -> None:
        self.accumulator.reset()
        self.accumulator.update(value)
        for name in self.names:
            state = getattr(self, name)
            setattr(self, name, state + self.accumulator.sums[name].to(state.device))
        for name in self.lists:
            getattr(self, name).append(self.accumulator.lists[name].to(self.device))

    @override
    def compute(self) -> dict[str, float]:
        self.accumulator.sums = {name: getattr(self, name).cpu() for name in self.names}
        if self.lists:
            self.accumulator.lists = {name: self._joined(name) for name in self.lists}
        return dict(self.accumulator.compute())

    def state(self) -> dict[str, Any]:
        """Sums and lists on the CPU; later updates do not change them."""
        sums = {name: getattr(self, name).cpu() for name in self.names}
        return sums | {name: [part.cpu() for part in getattr(self, name)] for name in self.lists}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set sums and lists."""
        self.merge_state(dict(state))
        self._update_count = max(self._update_count, 1)  # or compute() warns if no batch follows

    def metric_names(self) -> set[str] | None:
        """Names of the metrics; None if the accumulator has none without rows."""
        self.accumulator.reset()
        try:
            return set(self.accumulator.compute()) or None
        except Exception:  # noqa: BLE001  # code of the user, which may need rows
            return None

    def _joined(self, name: str) -> Tensor:
        """All entries of a list: one tensor after the reduction over ranks, many before."""
        entries = getattr(self, name)
        parts = [entries] if isinstance(entries, Tensor) else list(entries)
        # A rank without any row has a list without a shape.
        return torch.cat(
            [self.lists[name], *(part.cpu() for part in parts if part.ndim == self.lists[name].ndim)]
        )


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


class LossMean:
    """Mean of the loss and of its terms: total sum divided by total count, never a mean of means.

    Args:
        terms: Names of the terms, the same for every batch.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.terms = tuple(terms)
        # Numbered, as sums are attributes of a metric, and a term may have any name.
        self._keys = [f"term_{number}" for number in range(len(self.terms))]
        self.reset()

    def reset(self) -> None:
        """Reset the sums."""
        self.sums = {name: _zero() for name in ("loss_sum", "loss_count", *self._keys)}

    def update(self, output: LossOutput) -> None:
        """Add one output of a loss.

        Raises:
            XLMError: If its terms differ from those of earlier batches.
        """
        if set(output.terms) != set(self.terms):
            found, first = (", ".join(terms) or "none" for terms in (output.terms, self.terms))
            raise XLMError(
                f"loss: the terms of this batch are {found}, those of the first rows were {first}. "
                "A loss has the same terms for every batch; a term that does not occur is 0."
            )
        numbers = (output.loss_sum, output.loss_count, *(output.terms[name] for name in self.terms))
        # In one tensor, to synchronise with the device once.
        added = torch.stack([number.detach().double() for number in numbers]).cpu()
        for name, number in zip(self.sums, added, strict=True):
            self.sums[name] += number

    def compute(self) -> dict[str, float]:
        """The mean loss, and the mean of each term."""
        count = self.sums["loss_count"].clamp(min=1)
        names = zip(("loss", *self.terms), ("loss_sum", *self._keys), strict=True)
        return {name: float(self.sums[key] / count) for name, key in names}


class LikelihoodMean:
    """Perplexity of every family, from the same quantity: the sum of nats over the sum of tokens.

    Reports ``nll`` (nats per example) with its standard error over examples, ``nll_per_token``,
    ``perplexity`` = exp(nll_per_token) and ``bits_per_token``. ``is_bound`` is 1 if the
    likelihood is an upper bound, ``models_length`` is 1 if it includes the length.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the sums."""
        names = ("nll", "nll_squared", "tokens", "examples", "bounds", "with_length", "draws")
        self.sums = {name: _zero() for name in names}

    def update(self, likelihood: Likelihood) -> None:
        """Add the examples of one batch."""
        nll = likelihood.nll.double().cpu()
        self.sums["nll"] += nll.sum()
        self.sums["nll_squared"] += nll.square().sum()
        self.sums["tokens"] += likelihood.num_tokens.sum().cpu()
        self.sums["examples"] += len(nll)
        self.sums["bounds"] += len(nll) * (likelihood.nll_kind == "bound")
        self.sums["with_length"] += len(nll) * likelihood.models_length
        self.sums["draws"] += len(nll) * likelihood.num_draws

    def compute(self) -> dict[str, float]:
        """The metrics; all zero if nothing was added."""
        sums = {name: float(value) for name, value in self.sums.items()}
        examples = max(sums["examples"], 1.0)
        mean = sums["nll"] / examples
        variance = max(sums["nll_squared"] / examples - mean**2, 0.0)
        per_token = sums["nll"] / max(sums["tokens"], 1.0)
        return {
            "nll": mean,
            "nll_standard_error": math.sqrt(variance / max(examples - 1, 1.0)),
            "nll_per_token": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),
            "bits_per_token": per_token / math.log(2),
            "is_bound": sums["bounds"] / examples,
            "models_length": sums["with_length"] / examples,
            "num_draws": sums["draws"] / examples,
        }


def synchronised_time(device: torch.device) -> float:
    """Seconds of a clock, after all work of the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def costs(prediction: Prediction, seconds: float) -> dict[str, Tensor]:
    """What the rows of a prediction took, (rows,) each on the CPU.

    Args:
        prediction: The rows; ``calls`` and ``states`` are optional and equal ``nfe`` if missing or None,
            ``log_weight`` is optional.
        seconds: Wall time of their batch, which is divided evenly among them.

    Returns:
        nfe, calls and states as in :class:`xlm.modules.records.Prediction`, tokens, seconds, and log_weight
        if the prediction has it.
    """
    nfe = prediction.nfe
    calls, states = (getattr(prediction, name, None) for name in ("calls", "states"))
    counts = torch.stack(
        [nfe, nfe if calls is None else calls, nfe if states is None else states, prediction.lengths]
    )
    nfe, calls, states, tokens = counts.cpu()
    each = torch.full(nfe.shape, seconds / max(len(nfe), 1), dtype=torch.float64)
    spent = {"nfe": nfe, "calls": calls, "states": states, "tokens": tokens, "seconds": each}
    log_weight = getattr(prediction, "log_weight", None)
    return spent if log_weight is None else {**spent, "log_weight": log_weight.double().cpu()}


class SamplerLikelihoodMean:
    """The likelihood of the sampler: the metrics of :class:`LikelihoodMean` as ``sampler_...``.

    The means are over the texts that the sampler can write, ``share_impossible`` is the fraction of the
    others, and ``sampler_perplexity`` is infinite if there is one. ``share_impossible_draws`` is the fraction
    of replays with weight 0, ``share_near_ties`` that of texts with a choice that a difference of 1e-5 in a
    score would change, and ``sampler_nfe`` the mean number of evaluations of a text in all draws.
    """

    def __init__(self) -> None:
        self._possible = LikelihoodMean()
        self.reset()

    def reset(self) -> None:
        """Reset the sums."""
        self._possible.reset()
        names = ("rows", "impossible", "replays", "impossible_replays", "near_ties", "nfe")
        self.sums = self._possible.sums | {name: _zero() for name in names}

    def update(self, likelihood: SamplerLikelihood) -> None:
        """Add the examples of one batch."""
        nll = likelihood.nll.double().cpu()
        possible = nll.isfinite()
        self.sums["rows"] += len(nll)
        self.sums["impossible"] += (~possible).sum()
        self.sums["replays"] += likelihood.log_weights.numel()
        self.sums["impossible_replays"] += likelihood.log_weights.isinf().sum().cpu()
        self.sums["near_ties"] += (likelihood.smallest_gap < _NEAR_TIE).sum().cpu()
        self.sums["nfe"] += likelihood.nfe.sum().cpu()
        self._possible.sums = self.sums
        self._possible.update(
            _LikelihoodOfSome(
                nll=nll[possible],
                num_tokens=likelihood.num_tokens.cpu()[possible],
                nll_kind=likelihood.nll_kind,
                num_draws=likelihood.num_draws,
                models_length=likelihood.models_length,
            )
        )

    def compute(self) -> dict[str, float]:
        """The metrics; all zero if nothing was added."""
        self._possible.sums = self.sums
        found = {f"sampler_{name}": value for name, value in self._possible.compute().items()}
        if self.sums["impossible"] > 0:
            found["sampler_perplexity"] = math.inf
        rows, replays = (max(float(self.sums[name]), 1.0) for name in ("rows", "replays"))
        return found | {
            "sampler_nfe": float(self.sums["nfe"]) / rows,
            "share_impossible": float(self.sums["impossible"]) / rows,
            "share_impossible_draws": float(self.sums["impossible_replays"]) / replays,
            "share_near_ties": float(self.sums["near_ties"]) / rows,
        }


@dataclass(frozen=True)
class _LikelihoodOfSome:
    """The likelihood of some examples of a batch."""

    nll: Tensor
    num_tokens: Tensor
    nll_kind: Literal["exact", "bound"]
    num_draws: int
    models_length: bool


class GenerationCost:
    """Length of generated texts, and what a text takes: evaluations, calls, states and seconds.

    Of texts under a hard constraint also ``constraint_probability``, the mean weight, which estimates the
    probability that the sampler writes an allowed text, and ``effective_sample_share``, (sum of weights)^2
    over their number times the sum of squares: the share of as many equally weighted texts.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the sums."""
        names = ("nfe", "calls", "states", "tokens", "seconds", "rows", "weighted", "weights", "squares")
        self.sums = {name: _zero() for name in names}

    def update(self, rows: Mapping[str, Tensor]) -> None:
        """Add the :func:`costs` of one prediction."""
        for name, values in rows.items():
            if name != "log_weight":
                self.sums[name] += values.sum()
        self.sums["rows"] += len(rows["nfe"])
        if "log_weight" in rows:
            weights = rows["log_weight"].exp()
            self.sums["weighted"] += len(weights)
            self.sums["weights"] += weights.sum()
            self.sums["squares"] += weights.square().sum()

    def compute(self) -> dict[str, float]:
        """Means over rows, and the tokens per evaluation of all rows together."""
        sums = {name: float(value) for name, value in self.sums.items()}
        rows = max(sums["rows"], 1.0)
        of_constraint = {
            "constraint_probability": sums["weights"] / max(sums["weighted"], 1.0),
            "effective_sample_share": (
                sums["weights"] ** 2 / sums["squares"] / sums["weighted"] if sums["squares"] > 0 else 0.0
            ),
        }
        return {
            **(of_constraint if sums["weighted"] > 0 else {}),
            **{f"{name}_per_sequence": sums[name] / rows for name in ("nfe", "calls", "states", "seconds")},
            "tokens_per_evaluation": sums["tokens"] / max(sums["nfe"], 1.0),
            "length": sums["tokens"] / rows,
        }
