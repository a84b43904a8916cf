"""Where tokens and insertions come from: they are drawn, or a given text is forced along a labelled path.

A token of a text is labelled with the step that inserts its mask. The numbers of masks that each slot gets
in each step determine the labels and follow from them, so a path of the sampler is one labelling, and the
probability of a text is the sum over labellings. How many masks a step unmasks does not depend on the
network: that is drawn by the sampler itself.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import TokenSampling, draw_places
from xlm.modules.records import Targets
from xlm_flexmdm.agenda_flexmdm import Arrivals
from xlm_flexmdm.text_flexmdm import Text
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
        rows: Int[Tensor, " changed"],
        slots: Bool[Tensor, "changed length"],
        arrivals: Arrivals,
        step: Int[Tensor, " changed"],
        /,
    ) -> Int[Tensor, "changed length"]:
        """Number of masks to insert right of each column.

        Args:
            text: The rows.
            rows: Those that may change.
            slots: True at slots that may receive masks.
            arrivals: What draws the numbers, and has g and the budget.
            step: Number of the step of each row.
        """
        ...

    def note_gap(self, rows: Int[Tensor, " changed"], gap: Float64[Tensor, " changed"], /) -> None:
        """Note the distance of the scores of chosen masks to those not chosen."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Everything is drawn, as generation does."""

    sampling: TokenSampling

    def write(self, text: Text, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens."""
        return self.sampling.draw(logits, uniforms)

    def insert(self, text: Text, rows: Tensor, slots: Tensor, arrivals: Arrivals, step: Tensor, /) -> Tensor:
        """Drawn numbers."""
        return arrivals.draw()

    def note_gap(self, rows: Tensor, gap: Tensor, /) -> None:
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

    def insert(self, text: Text, rows: Tensor, slots: Tensor, arrivals: Arrivals, step: Tensor, /) -> Tensor:
        """The numbers of the tokens with this label; of a row in which they do not fit, none."""
        present, budget, gaps = self.present[rows], arrivals.budget, arrivals.gaps
        due = self.exists[rows] & ~present & (self.label[rows] == step.unsqueeze(1))
        on_left = present.cumsum(1) - present.long()
        column = text.target_start[rows].unsqueeze(1) - 1 + on_left
        counts = torch.zeros(gaps.shape, dtype=torch.int64, device=gaps.device)
        counts = counts.scatter_add(1, column, due.long())
        fits = (counts.masked_fill(slots, 0).sum(1) == 0) & (counts.sum(1) <= budget)
        counts = counts.masked_fill(~fits.unsqueeze(1), 0)
        self.present[rows] = present | (due & fits.unsqueeze(1))
        self.log_weight[rows] += log_prob_of_insertions(counts, gaps, budget, arrivals.factor)
        return counts

    def note_gap(self, rows: Tensor, gap: Tensor, /) -> None:
        """Keep the least gap of each row."""
        self.smallest_gap[rows] = self.smallest_gap[rows].minimum(gap)


def log_prob_of_insertions(
    counts: Int[Tensor, "rows length"],
    gaps: Float64[Tensor, "rows length"],
    budget: Int[Tensor, " rows"],
    factor: Float64[Tensor, " rows"],
) -> Float64[Tensor, " rows"]:
    """Nats with which :func:`xlm_flexmdm.insertions` gives these numbers, its Poisson arrivals drawn too.

    The accepted masks of a row are a Poisson number N with mean factor * min(budget, sum of g), each in slot
    i with probability g_i / sum of g, and the first ``budget`` of them are kept. So the numbers of the slots
    are independent and Poisson, but for P(N >= budget) in place of P(N = budget).

    Args:
        counts: Numbers of masks, in sum at most the budget.
        gaps: g of each slot.
        budget: Tokens that each row can take.
        factor: What g is multiplied by for the mean number of masks.
    """
    total = gaps.sum(1)
    # Without budget there is no slot and no g.
    means = gaps * (factor * budget / total.maximum(budget).clamp(min=1)).unsqueeze(1)
    mean = means.sum(1)
    log_mass = (torch.xlogy(counts, means) - torch.lgamma(counts.double() + 1)).sum(1) - mean
    full = counts.sum(1) == budget
    log_mass[full] += _log_tail(budget[full], mean[full])
    return log_mass


def _log_tail(number: Int[Tensor, " rows"], mean: Float64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
    """log of P(N >= number) / P(N = number) of a Poisson number: the sum of mean^k number! / (number + k)!.

    In logarithms, since both probabilities underflow for a small mean.
    """
    log_mean = mean.log()
    log_term, log_sum, k = torch.zeros_like(mean), torch.zeros_like(mean), 0
    while bool((log_term > log_sum - 40).any()):
        k += 1
        log_term = log_term + log_mean - (number + k).double().log()
        log_sum = torch.logaddexp(log_sum, log_term)
    return log_sum
