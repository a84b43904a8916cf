"""The likelihood of a sampler: its own loop with the text forced (:mod:`xlm.modules.writer`).

The cells of a turn, their order, the filters and the end of a row are decided by the code that generates.
What is drawn without the network (the order of the cells, their times, what is masked again) comes from the
seeds of the draw, and so does what the text leaves open: tokens behind its end, and those that are masked
again. The expectation of the product of the forced tokens' probabilities is the probability of the text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.modules.options import require
from xlm.modules.records import Event, SamplerLikelihood, Targets
from xlm.modules.samplers.canvas import Denoiser, PromptBatch, Text
from xlm.modules.samplers.plans import Events, Plan
from xlm.modules.samplers.quotas import Count, Hazard
from xlm.modules.samplers.ranks import Random
from xlm.modules.samplers.sampler import Sampler
from xlm.modules.samplers.trajectories import Generation, refuse_unscored
from xlm.modules.sampling import categorical
from xlm.modules.schedules import NoiseSchedule
from xlm.modules.writer import Force, check_draws, seeds_of_draw

Coupling = Literal["independent", "rotations"]

_TOKENS_AT_ONCE = 2**15
"""Tokens of the rows, padding included, of one call of the network where turns are put together."""


def sampler_likelihood(
    generation: Generation,
    batch: PromptBatch,
    targets: Targets,
    seeds: Int[Tensor, " rows"],
    *,
    num_draws: int = 1,
    event: Event = "text",
    coupling: Coupling = "independent",
) -> SamplerLikelihood:
    """-log of the probability with which a sampler writes each target, or an upper bound of it.

    Args:
        generation: The sampler, with all its options.
        batch: The given parts.
        targets: The texts, their given tokens included.
        seeds: The source of all draws.
        num_draws: Replays of each text; one is enough, and the value exact, where an order that depends on
            the text alone leaves nothing to draw.
        event: "text": the text up to its end, by whichever token ends it. "cells": also PAD in all cells
            behind EOS, as training rows have it; this is less probable.
        coupling: "rotations": draw k takes the order of the cells of draw k // M, rotated by k % M, with M
            the cells of the row. The bound is tighter than that of independent orders.

    Raises:
        ValueError: If the sampler has no likelihood, an option is outside its range, or a target differs from
            the given tokens of its row.
    """
    check_draws(num_draws, event)
    sampler = generation.sampler
    refuse_unscored(generation, "a text")
    _check_coupling(generation, coupling)
    # The end of a text that is complete up to it changes nothing; the cells behind it are part of "cells".
    generation = replace(generation, sampler=replace(sampler, stop="ended" if event == "text" else "filled"))
    wanted = _Wanted.of(generation, batch, targets, event)
    log_weights: list[Tensor] = []
    gap = torch.full((len(seeds),), math.inf, dtype=torch.float64, device=seeds.device)
    nfe, is_exact = torch.zeros_like(seeds), sampler.order == "text"
    for draw in range(num_draws):
        if coupling == "rotations":
            num_cells = batch["masked"].sum(1).clamp(min=1)
            own_seeds = _seeds_of_turns(draw // num_cells, seeds)
            rotated = replace(generation, sampler=_Rotated(**vars(generation.sampler), shift=draw))
            force, evaluations = wanted.replay(rotated, own_seeds)
        else:
            force, evaluations = wanted.replay(generation, seeds_of_draw(draw, seeds))
        log_weights.append(force.log_probs.masked_fill(~wanted.possible, -math.inf))
        gap, nfe = gap.minimum(force.smallest_gap), nfe + evaluations
        is_exact = is_exact and not bool(force.is_latent.any())
        if is_exact:
            break
    return SamplerLikelihood.of(
        torch.stack(log_weights),
        num_tokens=wanted.num_missing,
        is_exact=is_exact,
        models_length=bool((batch["may_end"] & batch["masked"]).any(1).all()),
        smallest_gap=gap,
        nfe=nfe,
    )


@dataclass(kw_only=True)
class _ForceCells(Force):
    """Forces a text of cells, each in its last write, and its end by any of the tokens that end it."""

    is_end: Bool[Tensor, "rows length"]
    """True at the cell with which the text ends, if any token may end it."""
    end_ids: Sequence[int]
    writes: Int[Tensor, "rows length"] | None = None
    """Writes still to come of each cell; None if there is one of each."""

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """The tokens of the text, drawn ones elsewhere, among those that end the text at its end."""
        is_last = torch.ones_like(row, dtype=torch.bool)
        if self.writes is not None:
            self.writes[row, column] -= 1
            is_last = self.writes[row, column] == 0
        is_end = self.is_end[row, column] & is_last
        known = (self.known[row, column] & is_last) | is_end
        tokens = self.ids[row, column]
        latent = ~known
        if bool(latent.any()):
            self.is_latent[row[latent]] = True
            tokens = tokens.masked_scatter(latent, self.sampling.draw(logits[latent], uniforms[latent]))
        log_probs = self.sampling.score(logits[known], tokens[known])
        if bool(is_end.any()):
            of_ends = self.sampling.log_probs(logits[is_end])[:, list(self.end_ids)]
            log_probs = log_probs.masked_scatter(is_end[known], of_ends.logsumexp(1))
            possible = of_ends.isfinite()
            self.is_latent[row[is_end][possible.sum(1) > 1]] = True
            drawn = categorical(of_ends.masked_fill(~possible.any(1, keepdim=True), 0.0), uniforms[is_end])
            tokens = tokens.masked_scatter(is_end, torch.tensor(self.end_ids, device=row.device)[drawn])
        self.notes.add(row[known], column[known], log_probs)
        return tokens


@dataclass(frozen=True)
class _Wanted:
    """The texts as cells of a batch, (rows, length) each unless noted."""

    batch: PromptBatch
    ids: Tensor
    known: Tensor
    is_end: Tensor
    possible: Tensor
    """(rows,) False at texts with too many tokens, or with one inside that ends them."""
    num_missing: Tensor
    """(rows,) target tokens that are not given."""

    @staticmethod
    def of(generation: Generation, batch: PromptBatch, targets: Targets, event: Event) -> "_Wanted":
        vocabulary = generation.denoiser.vocabulary
        text, masked = Text.of(batch, vocabulary), batch["masked"]
        column = torch.arange(masked.shape[1], device=masked.device)
        place = column - batch["target_start"].unsqueeze(1)
        lengths = targets.lengths.unsqueeze(1)
        inside = text.cells & (place < lengths)
        ids = torch.nn.functional.pad(targets.ids, (0, max(masked.shape[1] - targets.ids.shape[1], 0)))
        ids = ids.gather(1, place.clamp(min=0)).where(inside, batch["input_ids"])
        given = text.cells & ~masked
        ends = batch["may_end"] & vocabulary.ends(batch["input_ids"])
        is_end = text.cells & (place == lengths)
        differs = given & ((inside & (ids != batch["input_ids"])) | (is_end & ~ends))
        if bool(differs.any()):
            row, number = int(differs.any(1).nonzero()[0]), int(place[differs][0])
            raise ValueError(f"target {row} differs from the given token at position {number}")
        ends_inside = inside & batch["may_end"] & vocabulary.ends(ids)
        known = inside
        if event == "cells":
            end_id = generation.pad_id if generation.eos_id is None else generation.eos_id
            ids = ids.masked_fill(is_end, end_id)
            ids = ids.masked_fill(text.cells & (place > lengths), generation.pad_id)
            known, is_end = text.cells, torch.zeros_like(is_end)
        return _Wanted(
            batch=batch,
            ids=ids,
            known=known,
            is_end=is_end,
            possible=(targets.lengths <= text.cells.sum(1)) & ~ends_inside.any(1),
            num_missing=targets.lengths - (given & inside).sum(1),
        )

    def replay(self, generation: Generation, seeds: Tensor) -> tuple[Force, Tensor]:
        """The writer after one replay, and the evaluations of each row."""
        sampler, masked = generation.sampler, self.batch["masked"]
        writes = None if sampler.revise is None else _count_writes(generation, self.batch, seeds)
        force = _ForceCells(
            generation.sampling,
            self.ids,
            self.known,
            is_end=self.is_end,
            end_ids=generation.end_ids,
            writes=writes,
        )
        text = Text.of(self.batch, generation.denoiser.vocabulary)
        is_known = sampler.is_planned and sampler.revise is None and bool((self.known | ~masked).all())
        if is_known and not generation.keeps_states:
            # Every state is known before the network is evaluated.
            later = _Later(generation.denoiser, force)
            nfe = replace(generation, denoiser=later.denoiser).fill(text, later, seeds).nfe
            later.carry_out()
            return force, nfe
        return force, generation.fill(text, force, seeds).nfe


@dataclass
class _Later:
    """Puts off the evaluations of a plan whose tokens are all known, to make few calls of many states."""

    real: Denoiser
    force: Force
    states: list[tuple[Tensor, ...]] = field(default_factory=list[tuple[Tensor, ...]])
    """Ids, attention mask, alpha, and row and column of the cells of each evaluation."""
    may_end: list[Tensor] = field(default_factory=list[Tensor])
    cells: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    """Row and column in the batch."""

    @property
    def denoiser(self) -> Denoiser:
        """One that evaluates nothing yet."""
        return replace(self.real, evaluate=self.evaluate, vocabulary=self, prompts=None)

    def evaluate(self, input_ids: Tensor, attention_mask: Tensor, alpha: Tensor, positions: Tensor) -> Tensor:
        """No logits: they are made in :meth:`carry_out`."""
        width = input_ids.shape[1]
        self.states.append((input_ids, attention_mask, alpha, positions // width, positions % width))
        return alpha.new_zeros(len(positions), 1)

    def restrict(self, logits: Tensor, may_end: Tensor, /) -> Tensor:
        """Keep where texts may end."""
        self.may_end.append(may_end)
        return logits

    def ends(self, ids: Tensor, /) -> Tensor:
        """True at ids that end a text."""
        return self.real.vocabulary.ends(ids)

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """The tokens of the text."""
        self.cells.append((row, column))
        if sum(state[0].numel() for state in self.states) >= _TOKENS_AT_ONCE:
            self.carry_out()
        return self.force.ids[row, column]

    def note_gap(self, row: Tensor, gap: Callable[[], Tensor], /) -> None:
        """A plan depends on no score."""

    def carry_out(self) -> None:
        """Evaluate what was put off, in one call, and force the tokens."""
        if not self.states:
            return
        ids, masks, alphas, rows, columns = zip(*self.states, strict=True)
        width = max(table.shape[1] for table in ids)
        wide = [torch.nn.functional.pad(table, (0, width - table.shape[1])) for table in (*ids, *masks)]
        firsts = torch.tensor([0, *(len(table) for table in ids[:-1])]).cumsum(0).tolist()
        positions = [
            (first + row) * width + column for first, row, column in zip(firsts, rows, columns, strict=True)
        ]
        row, column = (torch.cat(parts) for parts in zip(*self.cells, strict=True))
        prompts = {}
        if self.real.prompts is not None:
            states = torch.cat([first + some for first, some in zip(firsts, rows, strict=True)])
            batch_row = states.new_zeros(sum(map(len, ids))).scatter(0, states, row)
            prompts = {"cache": self.real.prompts.of_rows(batch_row)}
        logits = self.real.evaluate(
            torch.cat(wide[: len(ids)]),
            torch.cat(wide[len(ids) :]),
            torch.cat(alphas),
            torch.cat(positions),
            **prompts,
        )
        logits = self.real.vocabulary.restrict(logits, torch.cat(self.may_end))
        self.force.write(row, column, logits, torch.zeros(len(row), dtype=torch.float64, device=row.device))
        self.states.clear()
        self.may_end.clear()
        self.cells.clear()


def _count_writes(generation: Generation, batch: PromptBatch, seeds: Tensor) -> Tensor:
    """(rows, length) how often the plan writes each cell, found by carrying it out without a network."""
    counter = _Counter(torch.zeros_like(batch["input_ids"]), token=int(generation.denoiser.mask_id == 0))
    denoiser = replace(generation.denoiser, evaluate=counter.evaluate, vocabulary=counter, prompts=None)
    replace(generation, denoiser=denoiser).fill(Text.of(batch, counter), counter, seeds)
    return counter.writes


@dataclass
class _Counter:
    """Network, vocabulary and writer of texts without tokens: only the number of writes is kept."""

    writes: Tensor
    token: int
    """Written everywhere; not MASK."""

    def evaluate(
        self, input_ids: Tensor, attention_mask: Tensor, alpha: Tensor, positions: Tensor, **states: object
    ) -> Tensor:
        """No logits."""
        return alpha.new_zeros(len(positions), 1)

    def restrict(self, logits: Tensor, may_end: Tensor, /) -> Tensor:
        """Nothing."""
        return logits

    def ends(self, ids: Tensor, /) -> Tensor:
        """No text ends."""
        return torch.zeros_like(ids, dtype=torch.bool)

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Count."""
        self.writes[row, column] += 1
        return torch.full_like(row, self.token)

    def note_gap(self, row: Tensor, gap: Callable[[], Tensor], /) -> None:
        """A plan depends on no score."""


def _check_coupling(generation: Generation, coupling: Coupling) -> None:
    require(coupling in ("independent", "rotations"), "coupling", coupling, "'independent' or 'rotations'")
    sampler, quota = generation.sampler, generation.sampler.quota
    one = isinstance(quota, Count | Hazard) and quota.num_steps is None
    fits = one and isinstance(sampler.rank, Random) and sampler.revise is None
    if coupling == "rotations" and not (fits and generation.window_length is None):
        raise ValueError(
            "coupling='rotations' rotates a random order of single cells: it needs rank=random, one cell per "
            f"turn and no window, not {sampler}"
        )


def _seeds_of_turns(draws: Tensor, seeds: Tensor) -> Tensor:
    """The seeds of the draw (rows,) of each row."""
    every = torch.stack([seeds_of_draw(draw, seeds) for draw in range(int(draws.max()) + 1)])
    return every.gather(0, draws.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class _Rotated(Sampler):
    """Takes the order of the cells from another place on, at the same times."""

    shift: int = 0

    def plan(self, masked: Tensor, seeds: Tensor, schedule: NoiseSchedule) -> Plan:
        """The rotated plan: one write in each of the turns 1, ..., M of a row."""
        plan = super().plan(masked, seeds, schedule)
        row, step = plan.writes.row, plan.writes.step
        num_cells = masked.sum(1)[row]
        alpha = plan.alpha.new_zeros(len(masked), masked.shape[1] + 1)
        alpha[row, step] = plan.alpha
        step = 1 + (step - 1 - self.shift) % num_cells
        return replace(plan, writes=Events(row, plan.writes.column, step), alpha=alpha[row, step])
