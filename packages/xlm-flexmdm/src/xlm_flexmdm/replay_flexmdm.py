"""Where tokens and insertions come from: they are drawn, or a given text is forced along a labelled path.

A token of a text is labelled with the step that inserts its mask. The numbers of masks that each slot gets
in each step determine the labels and follow from them, so a path of the sampler is one labelling, and the
probability of a text is the sum over labellings. How many masks a step unmasks does not depend on the
network: that is drawn by the sampler itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import TokenSampling, draw_places
from xlm.modules.records import Targets
from xlm_flexmdm.text_flexmdm import Text, fit_to_budget, poisson
from xlm_flexmdm.types_flexmdm import FlexMDMPromptBatch


class Source(Protocol):
    """Gives the tokens of masks, and the numbers of masks to insert."""

    def write(
        self,
        text: Text,
        row: Int[Tensor, " cells"],
        column: Int[Tensor, " cells"],
        logits: Float[Tensor, "cells vocab"],
        uniforms: Float64[Tensor, " cells"],
        /,
    ) -> Int[Tensor, " cells"]:
        """Tokens of some masks of a text."""
        ...

    def insert(
        self,
        text: Text,
        row: Int[Tensor, " slots"],
        column: Int[Tensor, " slots"],
        means: Float64[Tensor, " slots"],
        step: int,
        draw: Callable[[], Int[Tensor, "rows length"]],
        /,
    ) -> Int[Tensor, "rows length"]:
        """Number of masks to insert right of each column.

        Args:
            text: The rows.
            row: Row of each slot that may receive masks.
            column: Column on its left.
            means: Means of its Poisson distribution.
            step: Number of the step.
            draw: Draws the numbers.
        """
        ...

    def note_gap(self, gap: Float64[Tensor, " rows"], /) -> None:
        """Note the distance of the scores of chosen masks to those not chosen."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Everything is drawn, as generation does."""

    sampling: TokenSampling

    def write(self, text: Text, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens."""
        return self.sampling.draw(logits, uniforms)

    def insert(
        self,
        text: Text,
        row: Tensor,
        column: Tensor,
        means: Tensor,
        step: int,
        draw: Callable[[], Tensor],
        /,
    ) -> Tensor:
        """Drawn numbers."""
        return draw()

    def note_gap(self, gap: Tensor, /) -> None:
        """Nothing is noted."""


@dataclass
class Labelled:
    """Inserts the tokens of a text at labelled steps, with the weight of that labelling.

    The weight is the probability of the path over that of the labels, whose steps are independent with given
    probabilities; its expectation is the probability of the text.
    """

    sampling: TokenSampling
    ids: Int[Tensor, "rows width"]
    exists: Bool[Tensor, "rows width"]
    present: Bool[Tensor, "rows width"]
    """True at tokens in the row, as masks or clean."""
    label: Int[Tensor, "rows width"]
    """Step that inserts each missing token."""
    num_missing: Int[Tensor, " rows"]
    """Tokens to insert."""
    log_weight: Float64[Tensor, " rows"]
    """Nats, so far."""
    smallest_gap: Float64[Tensor, " rows"] = field(init=False)

    def __post_init__(self) -> None:
        self.smallest_gap = torch.full_like(self.log_weight, math.inf)

    @staticmethod
    def start(
        batch: FlexMDMPromptBatch,
        targets: Targets,
        sampling: TokenSampling,
        step_probabilities: Float64[Tensor, " steps"],
        label_uniforms: Float64[Tensor, "rows width"],
        place_uniforms: Float64[Tensor, "rows given"],
    ) -> "Labelled":
        """Nothing but the given tokens is in the rows.

        Where these fit to several places of the target, one fit is drawn, and its weight is their number.

        Args:
            batch: The given parts.
            targets: The texts, their given tokens included.
            sampling: How tokens are drawn.
            step_probabilities: Of the labels 1, 2, ...; they sum to 1.
            label_uniforms: Numbers in (0, 1) for the labels, at least one column.
            place_uniforms: Numbers in (0, 1) for the places of the given tokens.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        width = label_uniforms.shape[1]
        ids = nn.functional.pad(targets.ids, (0, width - targets.ids.shape[1]))
        exists = torch.arange(width, device=ids.device) < targets.lengths.unsqueeze(1)
        present = torch.zeros_like(exists)
        log_weight = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        num_given = batch["attention_mask"].sum(1) - batch["target_start"]
        for row in num_given.nonzero().squeeze(1).tolist():
            first, size = int(batch["target_start"][row]), int(num_given[row])
            places, number = draw_places(
                given=batch["input_ids"][row, first : first + size].tolist(),
                is_open=batch["open_slots"][row, first - 1 : first + size].tolist(),
                target=ids[row, : int(targets.lengths[row])].tolist(),
                uniforms=place_uniforms[row].tolist(),
            )
            if number == 0:
                raise ValueError(
                    f"target {row} does not hold the given tokens of its row, in their order and gaps"
                )
            present[row, places] = True
            log_weight[row] = math.log(number)
        missing = exists & ~present
        label = 1 + torch.searchsorted(step_probabilities.cumsum(0)[:-1], label_uniforms, right=True)
        log_q = step_probabilities.log()[label - 1]
        log_weight -= log_q.where(missing, 0.0).sum(1)
        return Labelled(sampling, ids, exists, present, label, missing.sum(1), log_weight)

    def finish(self) -> Float64[Tensor, " rows"]:
        """The log-weights; -inf for a text that the row did not end with."""
        return self.log_weight.masked_fill(~(self.present | ~self.exists).all(1), -math.inf)

    def write(self, text: Text, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """The tokens of the text; those in the row are in the order of its columns."""
        order = (~self.present).byte().argsort(dim=1, stable=True)
        tokens = self.ids[row, order[row, column - text.target_start[row]]]
        self.log_weight = self.log_weight.index_add(0, row, self.sampling.score(logits, tokens))
        return tokens

    def insert(
        self,
        text: Text,
        row: Tensor,
        column: Tensor,
        means: Tensor,
        step: int,
        draw: Callable[[], Tensor],
        /,
    ) -> Tensor:
        """The numbers of the tokens with this label; of a row in which they do not fit, none."""
        due = self.exists & ~self.present & (self.label == step)
        on_left = self.present.cumsum(1) - self.present.long()
        at = (text.target_start.unsqueeze(1) - 1 + on_left).clamp(max=text.input_ids.shape[1] - 1)
        counts = torch.zeros_like(text.input_ids).scatter_add(1, at, due.long())
        is_slot = torch.zeros_like(text.open_slots)
        is_slot[row, column] = True
        fits = (counts.masked_fill(is_slot, 0).sum(1) == 0) & (counts.sum(1) <= text.budget)
        counts = counts.masked_fill(~fits.unsqueeze(1), 0)
        self.present = self.present | (due & fits.unsqueeze(1))

        number = counts[row, column]
        log_mass = torch.xlogy(number, means) - means - torch.lgamma(number.double() + 1)
        log_probs = torch.zeros_like(self.log_weight).index_add(0, row, log_mass)
        full = ((counts.sum(1) == text.budget) & is_slot.any(1)).nonzero().squeeze(1)
        if len(full) > 0:
            wide_means = torch.zeros(is_slot.shape, dtype=torch.float64, device=means.device)
            wide_means[row, column] = means
            log_probs[full] = _log_prob_of_full(counts[full], wide_means[full], is_slot[full])
        self.log_weight = self.log_weight + log_probs
        return counts

    def note_gap(self, gap: Tensor, /) -> None:
        """Keep the least gap of each row."""
        self.smallest_gap = self.smallest_gap.minimum(gap)


def _log_prob_of_full(number: Tensor, means: Tensor, is_slot: Tensor) -> Tensor:
    """(rows,) nats with which Poisson numbers are cut to numbers (rows, length) that use up the budget.

    Slots are served in a random order. The slot that uses up the budget was to receive at least what it gets;
    those with tokens before it what they get; and those without either nothing, or they come after it. With
    v the share of the slots after it,

        sum over s of P(N_s >= c_s) prod_{others with tokens} P(N = c) *
            integral of (1 - v)^(others) prod_{without} (P(N = 0) + P(N > 0) v) dv,

    whose product is a polynomial in v with positive coefficients.
    """
    has_tokens, without = is_slot & (number > 0), is_slot & (number == 0)
    coefficients = torch.zeros(len(number), number.shape[1] + 1, dtype=torch.float64, device=means.device)
    coefficients[:, 0] = 1
    for column in without.any(0).nonzero().squeeze(1).tolist():
        nothing = (-means[:, column : column + 1]).exp()
        after = nn.functional.pad(coefficients[:, :-1], (1, 0)) * (1 - nothing)
        coefficients = (coefficients * nothing + after).where(without[:, column : column + 1], coefficients)
    others = has_tokens.sum(1, keepdim=True).double() - 1
    power = torch.arange(coefficients.shape[1], dtype=torch.float64, device=means.device)
    log_beta = torch.lgamma(power + 1) + torch.lgamma(others + 1) - torch.lgamma(power + others + 2)
    log_order = (coefficients.log() + log_beta).logsumexp(1)
    log_mass = torch.xlogy(number, means) - means - torch.lgamma(number.double() + 1)
    log_tail = torch.special.gammainc(number.double().where(has_tokens, 1.0), means).log()
    all_mass = log_mass.where(has_tokens, 0.0).sum(1, keepdim=True)
    # A slot of mean 0 with tokens is impossible, and -inf less -inf is no number.
    log_terms = (log_tail + all_mass - log_mass).nan_to_num(nan=-math.inf, neginf=-math.inf)
    return log_order + log_terms.masked_fill(~has_tokens, -math.inf).logsumexp(1)


def draw_insertions(
    text: Text,
    row: Int[Tensor, " slots"],
    column: Int[Tensor, " slots"],
    means: Float64[Tensor, " slots"],
    uniforms: Float64[Tensor, "rows length"],
    keys: Callable[[], Float64[Tensor, "rows length"]],
) -> Int[Tensor, "rows length"]:
    """Draw the number of masks to insert right of each column, cut to the budget of each row."""
    drawn = poisson(means, uniforms[row, column], text.budget[row])
    counts = torch.zeros_like(text.input_ids)
    counts[row, column] = drawn
    if not bool((counts.sum(1) > text.budget).any()):
        return counts
    return fit_to_budget(counts, text.budget, keys())
