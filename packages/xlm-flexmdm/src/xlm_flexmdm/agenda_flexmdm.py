"""What is drawn without the network: in which steps a row can change, and how many masks arrive."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from xlm.modules import uniform
from xlm_flexmdm.interpolant_flexmdm import Steps
from xlm_flexmdm.text_flexmdm import Text, insertions, poisson

_STREAM_INSERTION = 2
_STREAM_DUE = 4


def has_arrivals(means: Tensor, levels: Tensor) -> Tensor:
    """Whether a Poisson number of this mean, drawn from this uniform number, is above 0."""
    return levels > (-means).exp()


@dataclass(frozen=True)
class Arrivals:
    """Masks that arrive in a step at the rate of each row's budget, and go into slots, or nowhere.

    The number of arrivals does not depend on the network; an arrival goes into slot i with probability
    g_i / max(budget, sum of g). What arrives when the budget is used up is dropped.
    """

    gaps: Tensor
    """(rows, length) g, 0 where no mask may be inserted."""
    budget: Tensor
    """(rows,) tokens that can be missing."""
    factor: Tensor
    """(rows,) what g is multiplied by for the mean number of masks."""
    level: Tensor
    """(rows,) uniform numbers that the arrivals are drawn from."""
    seeds: Tensor
    """(rows,)"""
    index: Tensor
    """(rows,) step, from 0."""

    @cached_property
    def number(self) -> Tensor:
        """(rows,) arrivals."""
        means = self.budget * self.factor
        # A larger number is less likely than the finest level.
        return poisson(means, self.level, (2 * means + 64).long())

    def draw(self) -> Tensor:
        """(rows, length) masks to insert."""
        uniforms = uniform(self.seeds, int(self.number.max()), step=self.index, stream=_STREAM_INSERTION)
        return insertions(self.gaps, self.number, self.budget, uniforms)

    def log_prob(self, counts: Tensor) -> Tensor:
        """(rows,) nats of numbers (rows, length) of masks, given how many arrive; differentiable.

        Of a arrivals n go into slots, in any order. If n is the budget, so many or more would have.
        """
        arrivals, counts = self.number.double(), counts.double()
        total = counts.sum(1)
        rate = self.gaps.sum(1).maximum(self.budget.double()).clamp(min=torch.finfo(torch.float64).tiny)
        accepted = self.gaps.sum(1) / rate
        # The logarithm of the share of the others, which is 0 where all arrivals go into slots.
        nowhere = (1 - accepted).where(accepted < 1, 1.0).log()
        shares = (self.gaps / rate.unsqueeze(1)).where(counts > 0, 1.0)
        of_slots = (
            (counts * shares.log()).sum(1) - torch.lgamma(counts + 1).sum(1) + torch.lgamma(arrivals + 1)
        )
        rest = (arrivals - total).unsqueeze(1)
        # Of the arrivals behind those in slots, 0, 1, ... were dropped, all of them accepted.
        full = total == self.budget
        dropped = torch.arange(int(rest.max()) + 1, device=rest.device).where(full.unsqueeze(1), 0)
        left = rest - dropped
        share = accepted.where(full & (accepted > 0), 1.0).log().unsqueeze(1)
        of_rest = torch.lgamma(total + 1).unsqueeze(1) - torch.lgamma(total.unsqueeze(1) + dropped + 1)
        of_rest = (
            of_rest - torch.lgamma(left.clamp(min=0) + 1) + dropped * share + left * nowhere.unsqueeze(1)
        )
        impossible = (left < 0) | ((accepted >= 1).unsqueeze(1) & (left > 0))
        # One term only of a row that is not full.
        impossible[:, 1:] |= ~full.unsqueeze(1)
        return of_slots + of_rest.masked_fill(impossible, -torch.inf).logsumexp(1)


@dataclass
class Agenda:
    """The step that each row is at, and what is drawn of its later steps without the network."""

    steps: Steps
    seeds: Tensor
    index: Tensor
    """(rows,) index of the last step taken, from 0; -1 at the start."""
    unmaskings: Tensor
    """(rows, steps) masks that a step unmasks."""
    levels: Tensor
    """(rows, steps) uniform numbers that the arrivals of a step are drawn from."""

    @staticmethod
    def start(text: Text, steps: Steps, seeds: Tensor, levels: Tensor) -> "Agenda":
        """The agenda before the first step."""
        agenda = Agenda(
            steps=steps.to(seeds.device),
            seeds=seeds,
            index=torch.full_like(seeds, -1),
            unmaskings=torch.zeros(levels.shape, dtype=torch.int64, device=seeds.device),
            levels=levels,
        )
        agenda.add_masks(text.masked.sum(1))
        return agenda

    def advance(self, text: Text) -> Tensor:
        """Move each row to the next step that can change it, and return the rows that have one."""
        means = text.most_missing.unsqueeze(1) * self.steps.insertion_factor
        changes = (self.unmaskings > 0) | has_arrivals(means, self.levels)
        changes &= torch.arange(changes.shape[1], device=means.device) > self.index.unsqueeze(1)
        rows = changes.any(1).nonzero().squeeze(1)
        self.index[rows] = changes[rows].int().argmax(1)
        return rows

    def redraw(self, rows: Tensor, num_masks: Tensor) -> None:
        """Draw the later steps of some rows anew, where masks were unmasked before their step.

        Every mask is unmasked in a step with the same probability, whenever it came in, so this changes no
        distribution.

        Args:
            rows: (changed,) the rows.
            num_masks: (rows,) masks that each row has, of all rows.
        """
        self.unmaskings[rows] = 0
        added = torch.zeros_like(num_masks)
        added[rows] = num_masks[rows]
        self.add_masks(added)

    def add_masks(self, added: Tensor) -> None:
        """Draw the steps that unmask the masks which come in now, ``added`` (rows,) of each row."""
        most = int(added.max()) if len(added) > 0 else 0
        levels = uniform(self.seeds, most, step=self.index, stream=_STREAM_DUE)
        present = F.pad(self.steps.masked_chance, (1, 0), value=1.0)[self.index + 1]
        due = torch.searchsorted(-self.steps.masked_chance, -(levels * present.unsqueeze(1)))
        # A chance of 0 by rounding would lead back.
        due = due.maximum(self.index.unsqueeze(1) + 1).clamp(max=self.unmaskings.shape[1] - 1)
        exists = torch.arange(most, device=due.device) < added.unsqueeze(1)
        self.unmaskings.scatter_add_(1, due, exists.long())
