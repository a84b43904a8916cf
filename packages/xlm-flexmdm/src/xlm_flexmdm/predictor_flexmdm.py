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

A row is evaluated only in the steps that can change it, and these are drawn beforehand
(:class:`xlm_flexmdm.agenda_flexmdm.Agenda`). The step in which a mask is unmasked does not depend on the
network, so it is drawn when the mask comes in. No more tokens can be missing than the budget of a row, so
masks arrive at the rate of the budget, and each arrival is accepted with the share of g in it
(:func:`xlm_flexmdm.insertions`). Each row goes to its own next step, so the rows of an evaluation may be at
different times.

The draws of a row depend on its seed, the step and the purpose only, so it comes out the same in any batch.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from xlm.modules import (
    TokenSampling,
    check_draws,
    require,
    seeds_of_draw,
    suppress_tokens,
    take_top,
    uniform,
)
from xlm.modules.records import (
    Event,
    FullyTracedPrediction,
    Prediction,
    SamplerLikelihood,
    Targets,
    Trace,
    TracedPrediction,
    TrajectoryLogProbs,
    UserEdit,
)
from xlm.modules.samplers import View, compose
from xlm.modules.samplers.quotas import gap_of_ranks
from xlm_flexmdm.agenda_flexmdm import Agenda, Arrivals, has_arrivals
from xlm_flexmdm.interpolant_flexmdm import Interpolant, Sampler, Steps
from xlm_flexmdm.replay_flexmdm import Drawn, Labelled, Source
from xlm_flexmdm.text_flexmdm import Text
from xlm_flexmdm.trajectories_flexmdm import Followed, Recorded, by_step
from xlm_flexmdm.types_flexmdm import FlexMDMNetwork, FlexMDMPromptBatch, call_model

Rank = Literal["random", "left_to_right", "top_prob", "margin", "entropy"]
Quota = Literal["hazard", "threshold", "budget"]

_STREAM_UNMASKING = 0
_STREAM_TOKEN = 1
_STREAM_LABEL = 2
"""Of the likelihood alone, at step 0."""
_STREAM_ARRIVAL = 3


class FlexMDMPredictor:
    """Sampler of FlexMDM (Kim et al. 2025, arXiv:2509.01025, section 5).

    Call it with the network in evaluation mode: dropout is the one thing that the seeds do not govern.

    Args:
        interpolant: The two schedules: those of training.
        mask_id: Id of MASK, never in the result.
        pad_id: Id that fills the rows of the result.
        num_steps: N, at least 2. A row is evaluated only in steps in which a mask may come in or is unmasked.
        suppressed_ids: Further token ids that are never generated: those of the loss.
        max_new_tokens: The most tokens to insert; None for the budget that the batch gives each row. The
            sum of g over the slots of a row is at most what is left of it.
        sampler: "hazard_integrated": a mask is unmasked with the exact probability
            (beta(s) - beta(t)) / (1 - beta(t)), and the mean number of masks for a slot is
            g (alpha(s) - alpha(t)) / (1 - alpha(t)). "tau_leaping", as published: both hazards are held at
            their value at t, which gives 1 - exp(-(s - t) beta'(t) / (1 - beta(t))) and
            g (s - t) alpha'(t) / (1 - alpha(t)).
        rank: Which masks a step unmasks. "random": each by itself. The others take as many masks as "random"
            would, those first that are furthest left ("left_to_right") or with the highest confidence:
            "top_prob", "margin" or "entropy" of its probabilities, see :func:`xlm.modules.confidence`.
        quota: How many masks a step unmasks. "hazard": as many as are due. In a step in which any are,
            "threshold" unmasks all whose confidence exceeds tau as well, and "budget" the longest prefix of
            the order with entropies that add up to at most gamma, without the largest.
        tau: Of quota="threshold", below the confidence in a certain token; None for 0.9.
        gamma: Of quota="budget", in nats, at least 0; None for 0.1.
        temperature: Of the distribution of a token; at least 0, where 0 takes the most probable.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.

    Raises:
        ValueError: If an option is outside its range, options do not fit together, or "tau_leaping" has an
            infinite hazard at t = 0.
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
        rank: Rank = "random",
        quota: Quota = "hazard",
        tau: float | None = None,
        gamma: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        ranks, quotas = get_args(Rank), get_args(Quota)
        samplers = ("hazard_integrated", "tau_leaping")
        require(mask_id != pad_id, "mask_id", mask_id, "another id than pad_id")
        require(num_steps >= 2, "num_steps", num_steps, "at least 2, since the last step inserts nothing")
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        require(sampler in samplers, "sampler", sampler, f"one of {samplers}")
        require(rank in ranks, "rank", rank, f"one of {ranks}")
        require(quota in quotas, "quota", quota, f"one of {quotas}: insertion has the hazard of alpha")
        self._mask_id = mask_id
        self._pad_id = pad_id
        self._suppressed_ids = sorted({mask_id, *suppressed_ids})
        self._max_new_tokens = max_new_tokens
        self._rank: Rank = rank
        self._more = None
        if quota == "hazard":
            unused = (tau, gamma) == (None, None)
            require(unused, "tau, gamma", (tau, gamma), "left out with quota=hazard")
        elif rank in ("random", "left_to_right"):
            why = f"with quota={quota}: the others see only masks that are due"
            raise ValueError(f"rank must be top_prob, margin or entropy {why}, got {rank!r}")
        else:
            self._more = compose(rank=rank, quota=quota, tau=tau, gamma=gamma)
        self._sampling = TokenSampling(temperature, top_k, top_p)
        self._steps = Steps.of(interpolant, num_steps, sampler)
        # Of a step of insertion in the forward process; the last step of the sampler inserts nothing.
        alpha = interpolant.alpha(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device="cpu")[:-1])
        self._labels = alpha.diff() / (alpha[-1] - alpha[0])

    @overload
    def __call__(
        self, model: FlexMDMNetwork, batch: FlexMDMPromptBatch, seeds: Tensor, *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
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
        self,
        model: FlexMDMNetwork,
        batch: FlexMDMPromptBatch,
        seeds: Tensor,
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_flexmdm.FlexMDM.forward`.
            batch: The given parts, from :class:`xlm_flexmdm.FlexMDMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits; "full" also records the log-probabilities of tokens, and of
                the slots that the masks go into.

        Returns:
            The targets. A row without budget or open slot keeps what it has. A token comes in two edits: MASK
            is inserted, and later written over.
        """
        text, agenda = self._start(batch, seeds)
        edits = [text.given_edits()]
        source: Drawn | Recorded = Drawn(self._sampling)
        if trace == "full":
            source = Recorded(self._sampling, torch.zeros_like(seeds, dtype=torch.float64))
        nfe = self._run(model, text, agenda, source, edits)
        ids, lengths = text.targets()
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None, calls=nfe)
        full = source.full(edits) if isinstance(source, Recorded) else None
        if full is not None:
            return FullyTracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=full, calls=nfe)
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=by_step(edits), calls=nfe)

    @torch.no_grad()
    def fork(
        self, model: FlexMDMNetwork, batch: FlexMDMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        Raises:
            ValueError: If there is no such step, the text has no such position then, or the token is MASK.
        """
        text, agenda = self._start(batch, seeds)
        edits = [text.given_edits()]
        nfe = self._run(model, text, agenda, Drawn(self._sampling), edits, edit)
        ids, lengths = text.targets()
        made = edit.made_in(by_step(edits))
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=nfe)

    def trajectory_log_probs(
        self, model: FlexMDMNetwork, batch: FlexMDMPromptBatch, trace: Trace, seeds: Tensor, /
    ) -> TrajectoryLogProbs:
        """Log-probabilities of the tokens and of the slots of a generation, with gradient.

        How many masks arrive and are unmasked when comes from the seeds, and has no part in it.

        Args:
            model: The network, see :meth:`xlm_flexmdm.FlexMDM.forward`.
            batch: Of the generation.
            trace: All its edits; ``trace=True`` is enough.
            seeds: Those of the generation.

        Raises:
            ValueError: If this sampler with these seeds changes other cells than the trace.
        """
        followed = Followed.start(self._sampling, trace, len(seeds))
        text, agenda = self._start(batch, seeds)
        self._run(model, text, agenda, followed, [])
        return TrajectoryLogProbs(log_prob=followed.finish(), place_log_prob=followed.place_log_prob)

    def _start(self, batch: FlexMDMPromptBatch, seeds: Tensor) -> tuple[Text, Agenda]:
        """The rows before the first step."""
        text = Text.start(
            batch, mask_id=self._mask_id, pad_id=self._pad_id, max_new_tokens=self._max_new_tokens
        )
        levels = uniform(seeds, len(self._steps.time), step=0, stream=_STREAM_ARRIVAL)
        return text, Agenda.start(text, self._steps, seeds, levels)

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
        sampler (:class:`xlm_flexmdm.replay_flexmdm.Labelled`), with an evaluation in every step in which a
        mask can arrive. Every option counts, and insertions that the budget drops as well. Over all targets,
        the expectation of exp(-nll) sums to 1.

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
        # Above every drawn level: no step in which a mask can arrive is left out.
        levels = torch.ones(len(seeds), len(self._steps.time), dtype=torch.float64, device=seeds.device)
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
                uniform(own_seeds, width, step=0, stream=_STREAM_LABEL),
                uniform(own_seeds, text.input_ids.shape[1], step=0, stream=_STREAM_TOKEN),
            )
            nfe += self._run(model, text, Agenda.start(text, self._steps, own_seeds, levels), labelled, [])
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

    def _run(
        self,
        model: FlexMDMNetwork,
        text: Text,
        agenda: Agenda,
        source: Source,
        edits: list[Tensor],
        edit: UserEdit | None = None,
        /,
    ) -> Tensor:
        """Take all steps, append the edits, and return the number of evaluations of each row."""
        nfe = torch.zeros_like(agenda.seeds)
        while len(rows := agenda.advance(text)) > 0:
            nfe[rows] += 1
            edits += self._change(model, text, agenda, rows, source)
            if edit is not None and bool((agenda.index[rows[rows == edit.row]] + 1 == edit.step).any()):
                edits.append(text.edit(edit))
        return nfe

    def _change(
        self, model: FlexMDMNetwork, text: Text, agenda: "Agenda", rows: Tensor, source: Source
    ) -> list[Tensor]:
        """Take the step that each of the rows is at, and return the edits."""
        index, seeds, budget = agenda.index[rows], agenda.seeds[rows], text.most_missing[rows]
        input_ids, attention_mask = text.window(rows)
        masked, width = input_ids == self._mask_id, input_ids.shape[1]
        number = agenda.unmaskings[rows, index]
        factor, level = agenda.steps.insertion_factor[index], agenda.levels[rows, index]

        keys = uniform(seeds, width, step=index, stream=_STREAM_UNMASKING)
        candidates = self._candidates(masked, number, keys)
        slots = text.open_slots[rows, :width] & has_arrivals(budget * factor, level).unsqueeze(1)
        logits, output = call_model(
            model,
            _logits,
            input_ids,
            attention_mask,
            agenda.steps.time[index],
            agenda.steps.missing_chance[index],
            token_positions=candidates.flatten().nonzero().squeeze(1),
            slot_positions=slots.flatten().nonzero().squeeze(1),
        )
        logits = suppress_tokens(logits, self._suppressed_ids)
        chosen, gap = self._choose(candidates, number, logits, seeds)
        source.note_gap(rows, gap)
        row, column = chosen.nonzero(as_tuple=True)
        uniforms = uniform(seeds, width, step=index, stream=_STREAM_TOKEN)
        token = source.write(text, rows[row], column, logits[chosen[candidates]], uniforms[row, column])

        gaps = torch.zeros(slots.shape, dtype=torch.float64, device=slots.device)
        gaps[slots] = output.expected_gaps.double()
        arrivals = Arrivals(gaps, budget, factor, level, seeds, index)
        counts = torch.zeros(text.input_ids.shape, dtype=torch.int64, device=slots.device)
        counts[rows, :width] = source.insert(text, rows, slots, arrivals, index + 1)
        step = agenda.index + 1
        edits = [text.write(rows[row], column, token, step[rows[row]]), text.insert(counts, step)]
        if self._more is None:
            agenda.add_masks(counts.sum(1))
        else:
            agenda.redraw(rows, text.masked.sum(1))
        return edits

    def _candidates(self, masked: Tensor, number: Tensor, keys: Tensor) -> Tensor:
        """(rows, length) masks whose logits are needed: all of a row only where the network ranks them."""
        if self._rank == "random":
            return take_top(keys, number, masked)
        if self._rank == "left_to_right":
            leftward = -torch.arange(masked.shape[1], device=masked.device, dtype=torch.float64)
            return take_top(leftward.expand(masked.shape), number, masked)
        return masked & (number > 0).unsqueeze(1)

    def _choose(
        self, candidates: Tensor, number: Tensor, logits: Tensor, seeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(rows, length) masks to unmask now, at least ``number``; (rows,) the gap to those not chosen."""
        if self._rank in ("random", "left_to_right"):
            return candidates, torch.full(number.shape, math.inf, dtype=torch.float64, device=number.device)
        view = View(seeds, 0, candidates, candidates, logits=logits)
        scores = view.confidence(self._rank)
        chosen = take_top(scores, number, candidates)
        gap = gap_of_ranks(scores, view, chosen)
        if self._more is not None:
            chooser = self._more.quota.begin()
            more = chooser.choose(scores, view)
            gap = gap.minimum(chooser.gap(scores, view, more))
            chosen = chosen | more
        return chosen, gap


def _logits(hidden: Tensor, head: nn.Module) -> Tensor:
    """The readout."""
    return head(hidden)
