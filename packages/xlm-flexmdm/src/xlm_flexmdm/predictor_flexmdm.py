"""Inference: masks are inserted and unmasked along the time of the interpolant, in N steps from 0 to 1.

    for t, s in pairwise(times):                              # 0 = t_0 < t_1 < ... < t_N = 1
        logits, gaps = network(x, t)
        cells = masked & (rand(masked.shape) < (beta(s) - beta(t)) / (1 - beta(t)))
        counts = poisson(gaps * (alpha(s) - alpha(t)) / (1 - alpha(t)))
        x[cells] = draw(logits[cells])
        x = insert_masks(x, counts)                           # counts[i] of them right of column i

A step from t to s evaluates the network once, at t. Each mask is then unmasked with the probability that its
T2 lies in the step, and each open slot receives as many masks as a Poisson distribution gives, with the mean
that the rate of insertion has in the step. The last step inserts nothing, since what it inserts would stay
MASK, and unmasks every mask. The distribution of the result therefore approaches that of the continuous
process like 1/N.

The network sees t, on which the number of missing tokens depends, so an evaluation cannot be used again in a
later step. What can be saved is a row's evaluation in a step that can change nothing in it: which masks a
step unmasks, or how many, is drawn before the network is evaluated; and a row without budget, or without an
open slot, gets no insertion. Other rows cannot be finished before the last step.

The draws of a row depend on its seed, the step and the purpose only, so it comes out the same in any batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor, nn

from xlm.modules import (
    TokenSampling,
    check_draws,
    confidence,
    require,
    seeds_of_draw,
    suppress_tokens,
    take_top,
    uniform,
)
from xlm.modules.records import Event, Prediction, SamplerLikelihood, Targets, Trace, TracedPrediction
from xlm_flexmdm.interpolant_flexmdm import Interpolant
from xlm_flexmdm.replay_flexmdm import Drawn, Labelled, Source, draw_insertions
from xlm_flexmdm.text_flexmdm import Text
from xlm_flexmdm.types_flexmdm import (
    FlexMDMNetwork,
    FlexMDMOutput,
    FlexMDMPromptBatch,
    call_model,
)

Sampler = Literal["hazard_integrated", "tau_leaping"]
Order = Literal["random", "position", "top_prob", "margin", "entropy"]

_STREAM_UNMASKING = 0
_STREAM_TOKEN = 1
_STREAM_INSERTION = 2
_STREAM_BUDGET = 3


class FlexMDMPredictor:
    """Sampler of FlexMDM (Kim et al. 2025, arXiv:2509.01025, section 5).

    Call it with the network in evaluation mode: dropout is the one thing that the seeds do not govern.

    Args:
        interpolant: The two schedules: those of training.
        mask_id: Id of MASK, never in the result.
        pad_id: Id that fills the rows of the result.
        num_steps: N, at least 2. A row takes part in up to N evaluations of the network.
        suppressed_ids: Further token ids that are never generated: those of the loss.
        max_new_tokens: The most tokens to insert; None for the budget that the batch gives each row.
            Insertions beyond it are cut by :func:`xlm_flexmdm.fit_to_budget`; the step's others stay.
        sampler: "hazard_integrated": a mask is unmasked with the exact probability
            (beta(s) - beta(t)) / (1 - beta(t)), and the mean number of masks for a slot is
            g (alpha(s) - alpha(t)) / (1 - alpha(t)). "tau_leaping", as published: both hazards are held at
            their value at t, which gives 1 - exp(-(s - t) beta'(t) / (1 - beta(t))) and
            g (s - t) alpha'(t) / (1 - alpha(t)).
        order: Which masks a step unmasks. "random": each by itself. The others take as many masks as "random"
            would, those first that are furthest left ("position") or with the highest confidence:
            "top_prob", "margin" or "entropy" of its probabilities, see :func:`xlm.modules.confidence`.
        temperature: Of the distribution of a token; at least 0, where 0 takes the most probable.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.

    Raises:
        ValueError: If an option is outside its range, or "tau_leaping" has an infinite hazard at t = 0.
    """

    def __init__(
        self,
        *,
        interpolant: Interpolant,
        mask_id: int,
        pad_id: int,
        num_steps: int = 128,
        suppressed_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
        sampler: Sampler = "hazard_integrated",
        order: Order = "random",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        orders = ("random", "position", "top_prob", "margin", "entropy")
        samplers = ("hazard_integrated", "tau_leaping")
        require(mask_id != pad_id, "mask_id", mask_id, "another id than pad_id")
        require(num_steps >= 2, "num_steps", num_steps, "at least 2, since the last step inserts nothing")
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        require(sampler in samplers, "sampler", sampler, f"one of {samplers}")
        require(order in orders, "order", order, f"one of {orders}")
        self._mask_id = mask_id
        self._pad_id = pad_id
        self._suppressed_ids = sorted({mask_id, *suppressed_ids})
        self._max_new_tokens = max_new_tokens
        self._order: Order = order
        self._sampling = TokenSampling(temperature, top_k, top_p)
        self._steps = _steps(interpolant, num_steps, sampler)
        # Of a step of insertion in the forward process; the last step of the sampler inserts nothing.
        alpha = interpolant.alpha(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device="cpu")[:-1])
        self._labels = alpha.diff() / (alpha[-1] - alpha[0])

    @overload
    def __call__(
        self, model: FlexMDMNetwork, batch: FlexMDMPromptBatch, seeds: Tensor, *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: FlexMDMNetwork, batch: FlexMDMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self, model: FlexMDMNetwork, batch: FlexMDMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_flexmdm.FlexMDM.forward`.
            batch: The given parts, from :class:`xlm_flexmdm.FlexMDMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits.

        Returns:
            The targets. A row without budget or open slot keeps what it has. A token comes in two edits: MASK
            is inserted, and later written over.
        """
        text = Text.start(
            batch, mask_id=self._mask_id, pad_id=self._pad_id, max_new_tokens=self._max_new_tokens
        )
        edits = [text.given_edits()]
        nfe = torch.zeros_like(seeds)
        for step in self._steps:
            edits += self._advance(model, text, seeds, step, nfe, Drawn(self._sampling))
        ids, lengths = text.targets()
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None)
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=Trace.of(edits))

    @torch.no_grad()
    def likelihood(
        self,
        model: FlexMDMNetwork,
        batch: FlexMDMPromptBatch,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """Estimate an upper bound of -log of the probability with which this sampler writes each target.

        Each draw labels the tokens with steps of insertion, drawn from the interpolant, and replays the
        sampler (:class:`xlm_flexmdm.replay_flexmdm.Labelled`); every option counts, and insertions that the
        budget cuts as well. Over all targets, the expectation of exp(-nll) sums to 1.

        Args:
            model: The network, see :meth:`xlm_flexmdm.FlexMDM.forward`.
            batch: The given parts, from :class:`xlm_flexmdm.FlexMDMPromptCollator`.
            targets: The texts, their given tokens included.
            seeds: (rows,) int64, the source of the labels and of what is unmasked when.
            num_draws: Paths of each text.
            event: The text and the cells are the same here.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        check_draws(num_draws, event)
        log_weights: list[Tensor] = []
        gap = torch.full((len(seeds),), math.inf, dtype=torch.float64, device=seeds.device)
        nfe, num_missing = torch.zeros_like(seeds), torch.zeros_like(seeds)
        for draw in range(num_draws):
            own_seeds = seeds_of_draw(draw, seeds)
            width = max(targets.ids.shape[1], 1)
            text = Text.start(
                batch, mask_id=self._mask_id, pad_id=self._pad_id, max_new_tokens=self._max_new_tokens
            )
            labelled = Labelled.start(
                batch,
                targets,
                self._sampling,
                self._labels.to(seeds.device),
                uniform(own_seeds, width, step=0, stream=_STREAM_INSERTION),
                uniform(own_seeds, text.input_ids.shape[1], step=0, stream=_STREAM_TOKEN),
            )
            for step in self._steps:
                self._advance(model, text, own_seeds, step, nfe, labelled)
            log_weights.append(labelled.finish())
            gap, num_missing = gap.minimum(labelled.smallest_gap), labelled.num_missing
        return SamplerLikelihood.of(
            torch.stack(log_weights),
            num_tokens=num_missing,
            is_exact=False,
            models_length=True,
            smallest_gap=gap,
            nfe=nfe,
        )

    def _advance(
        self, model: FlexMDMNetwork, text: Text, seeds: Tensor, step: "_Step", nfe: Tensor, source: Source
    ) -> list[Tensor]:
        """Take one step with every row that it can change, and return the edits."""
        masked = text.masked
        length = masked.shape[1]
        level = uniform(seeds, length, step=step.number, stream=_STREAM_UNMASKING)
        drawn = masked & (level < step.unmasking_chance)
        slots = text.open_slots & (text.growing & (step.insertion_factor > 0)).unsqueeze(1)
        rows = (drawn.any(1) | slots.any(1)).nonzero().squeeze(1)
        if len(rows) == 0:
            return []
        nfe[rows] += 1

        candidates = self._candidates(masked, drawn)
        logits, output = _evaluate(model, text, rows, candidates, slots, step)
        logits = suppress_tokens(logits, self._suppressed_ids)
        chosen = self._choose(candidates, drawn, logits, source)
        row, column = chosen.nonzero(as_tuple=True)
        numbers = uniform(seeds, length, step=step.number, stream=_STREAM_TOKEN)
        token = source.write(text, row, column, logits[chosen[candidates]], numbers[row, column])
        edits = text.write(row, column, token, step.number)

        row, column = slots.nonzero(as_tuple=True)
        means = output.expected_gaps.double() * step.insertion_factor
        draw = partial(
            draw_insertions,
            text,
            row,
            column,
            means,
            uniform(seeds, length, step=step.number, stream=_STREAM_INSERTION),
            partial(uniform, seeds, length, step=step.number, stream=_STREAM_BUDGET),
        )
        counts = source.insert(text, row, column, means, step.number, draw)
        return [edits, text.insert(counts, step.number)]

    def _candidates(self, masked: Tensor, drawn: Tensor) -> Tensor:
        """(rows, length) masks whose logits are needed: all of a row only where the network ranks them."""
        if self._order == "random":
            return drawn
        if self._order == "position":
            leftward = -torch.arange(masked.shape[1], device=masked.device, dtype=torch.float64)
            return take_top(leftward.expand(masked.shape), drawn.sum(1), masked)
        return masked & drawn.any(1, keepdim=True)

    def _choose(self, candidates: Tensor, drawn: Tensor, logits: Tensor, source: Source) -> Tensor:
        """(rows, length) masks to unmask now: as many of each row as were drawn, hence never too many."""
        if self._order in ("random", "position"):
            return candidates
        scores = torch.zeros(candidates.shape, dtype=torch.float64, device=candidates.device)
        scores[candidates] = confidence(logits, self._order)
        chosen = take_top(scores, drawn.sum(1), candidates)
        last = scores.masked_fill(~chosen, math.inf).amin(1)
        source.note_gap(last - scores.masked_fill(~candidates | chosen, -math.inf).amax(1))
        return chosen


@dataclass(frozen=True)
class _Step:
    """What a step from t to s does."""

    number: int
    """From 1."""
    time: float
    """Time input of the network at t."""
    missing_chance: float
    """1 - alpha(t)."""
    unmasking_chance: float
    insertion_factor: float
    """What g is multiplied by for the mean number of insertions."""


def _steps(interpolant: Interpolant, num_steps: int, sampler: Sampler) -> list[_Step]:
    # On the CPU whatever the default device: the steps are plain numbers.
    grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device="cpu")
    start, end = grid[:-1], grid[1:]
    if sampler == "hazard_integrated":
        insertion = (interpolant.alpha(end) - interpolant.alpha(start)) / (1 - interpolant.alpha(start))
        unmasking = (interpolant.beta(end) - interpolant.beta(start)) / (1 - interpolant.beta(start))
    else:
        insertion = interpolant.insertion_hazard(start) / num_steps
        unmasking = -torch.expm1(-interpolant.unmasking_hazard(start) / num_steps)
        if not bool(insertion.isfinite().all()):
            raise ValueError(
                "sampler='tau_leaping' holds the hazard of insertion at its value at t = 0, which is "
                "infinite with this schedule: use sampler='hazard_integrated'"
            )
    insertion[-1], unmasking[-1] = 0.0, 1.0
    columns = (interpolant.network_time(start), 1 - interpolant.alpha(start), unmasking, insertion)
    rows = torch.stack(columns, dim=1)
    return [_Step(number, *(float(value) for value in row)) for number, row in enumerate(rows, start=1)]


def _logits(hidden: Tensor, head: nn.Module) -> Tensor:
    """The readout."""
    logits: Tensor = head(hidden)
    return logits


def _evaluate(
    model: FlexMDMNetwork, text: Text, rows: Tensor, cells: Tensor, slots: Tensor, step: _Step
) -> tuple[Tensor, FlexMDMOutput]:
    """Logits and output on some rows, at cells and slots marked in tables (rows of the text, length)."""
    input_ids, attention_mask = text.window(rows)
    width = input_ids.shape[1]
    one = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    return call_model(
        model,
        _logits,
        input_ids,
        attention_mask,
        step.time * one,
        step.missing_chance * one,
        token_positions=cells[rows, :width].flatten().nonzero().squeeze(1),
        slot_positions=slots[rows, :width].flatten().nonzero().squeeze(1),
    )
