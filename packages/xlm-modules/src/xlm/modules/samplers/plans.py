"""Plans: which cells are written when, settled before the network is evaluated at all.

In masked diffusion *whether* a cell is unmasked in a step does not depend on the network, only *what* is
written does. So the steps of all cells can be drawn first. A row then needs the network only in the steps
that write something in it: these are its *turns*, numbered from 1 without gaps. Rows take their turns
together, whatever the steps behind them are, so a batch costs as many calls of the network as its busiest row
has turns.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules.random import uniform
from xlm.modules.samplers.process import Transitions, time_grid, unmask_probability
from xlm.modules.samplers.quotas import Chooser, gap_of_ranks
from xlm.modules.samplers.ranks import STREAM_CELLS, Rank, View, take_top
from xlm.modules.schedules import NoiseSchedule


@dataclass(frozen=True)
class Events:
    """Cells to which something happens in a step, (events,) each, in any order."""

    row: Int[Tensor, " events"]
    column: Int[Tensor, " events"]
    step: Int[Tensor, " events"]
    """From 1."""


@dataclass(frozen=True)
class Plan:
    """What happens to the rows.

    Args:
        num_rows: Number of rows.
        writes: Cells that get a token, drawn from the prediction for the row as it is before the step.
        alpha: Probability that a cell is clean at that time, for each write; the same for all writes of a
            row's step.
        remasks: Written cells that are masked again, at the end of their step; None for a plan that never
            does so. It ends early for a row whose text is complete up to its end, since what is still masked
            behind the end changes nothing.
    """

    num_rows: int
    writes: Events
    alpha: Float64[Tensor, " events"]
    remasks: Events | None = None

    @cached_property
    def turns(self) -> list[Int[Tensor, " events"]]:
        """For each turn, from 1, the indices of its writes."""
        return self._group(self.writes)

    @cached_property
    def remask_turns(self) -> list[Int[Tensor, " events"]]:
        """For each turn the indices of the cells masked at its end or in a step before the row's next one."""
        return [] if self.remasks is None else self._group(self.remasks)

    def counts(self, turn: int) -> Int[Tensor, " rows"]:
        """Number of cells that a turn writes in each row, 0 behind the last turn."""
        written = self.turns[turn - 1] if turn <= len(self.turns) else self.turns[0][:0]
        return torch.bincount(self.writes.row[written], minlength=self.num_rows)

    def alpha_of_rows(self, turn: int) -> Float64[Tensor, " rows"]:
        """alpha of each row at a turn; without meaning at rows that it leaves alone."""
        written = self.turns[turn - 1]
        alpha = self.alpha.new_zeros(self.num_rows)
        return alpha.scatter(0, self.writes.row[written], self.alpha[written])

    @cached_property
    def _keys(self) -> Tensor:
        """(turns,) row * (largest step + 1) + step of the turns of all rows, ascending."""
        return torch.unique(self.writes.row * self._num_steps + self.writes.step)

    @cached_property
    def _num_steps(self) -> int:
        return 1 + (int(self.writes.step.max()) if len(self.writes.step) > 0 else 0)

    def _group(self, events: Events) -> list[Tensor]:
        """For each turn the indices of the events from its step on up to the next turn's."""
        start = events.row * self._num_steps
        before_row = torch.searchsorted(self._keys, start)
        turn = torch.searchsorted(self._keys, start + events.step, right=True) - before_row
        num_turns = int(torch.bincount(self._keys // self._num_steps, minlength=1).max())
        sizes = torch.bincount(turn, minlength=num_turns + 1).tolist()
        return list(turn.argsort(stable=True).split(sizes))[1:]


def plan_steps(
    masked: Bool[Tensor, "rows length"], seeds: Int[Tensor, " rows"], schedule: NoiseSchedule, num_steps: int
) -> Plan:
    """Draw the steps of ancestral sampling: a row takes at most min(N, masks) turns.

    The last step, to s = 0, draws what is left in the same way. (The published code stops at s = 1e-5 and
    takes the most probable token there.) The distribution tends to that of the likelihood bound as N grows,
    with an error of order 1/N.
    """
    times = time_grid(num_steps).to(seeds.device)
    # The step of a cell by inversion: the transitions compose, so that these are the probabilities that a
    # cell is unmasked by the end of steps 1 to N - 1.
    later = times[1:-1]
    unmasked_by = unmask_probability(schedule, torch.ones_like(later), later)
    row, column = masked.nonzero(as_tuple=True)
    drawn = uniform(seeds, masked.shape[1], step=0, stream=STREAM_CELLS)[row, column]
    step = 1 + torch.searchsorted(unmasked_by, drawn, right=True)
    return Plan(len(seeds), Events(row, column, step), schedule.alpha(times)[step - 1])


def plan_hits(
    masked: Bool[Tensor, "rows length"], seeds: Int[Tensor, " rows"], schedule: NoiseSchedule
) -> Plan:
    """Draw the times at which the process in continuous time unmasks each cell: one turn per mask.

    From n masked cells at mask probability u the next time is where it has fallen to u v^(1/n) with v ~
    U(0, 1), and a uniformly chosen cell is unmasked: the largest of n independent U(0, u) draws, one for each
    cell.
    """
    drawn = uniform(seeds, masked.shape[1], step=0, stream=STREAM_CELLS)
    order = drawn.masked_fill(~masked, -1.0).argsort(dim=1, descending=True, stable=True)
    row, column = masked.nonzero(as_tuple=True)
    step = 1 + order.argsort(dim=1)[row, column]
    return Plan(len(seeds), Events(row, column, step), alpha_of_share(schedule, drawn[row, column]))


def plan_remasking(
    masked: Bool[Tensor, "rows length"], seeds: Int[Tensor, " rows"], transitions: Transitions
) -> Plan:
    """Draw the steps in which each cell is written and masked again."""
    masked, written = masked.clone(), torch.zeros_like(masked)
    writes: list[Tensor] = []
    remasks: list[Tensor] = []
    steps = zip(transitions.unmask.tolist(), transitions.remask.tolist(), strict=True)
    for step, (unmask, remask) in enumerate(steps, start=1):
        drawn = uniform(seeds, masked.shape[1], step=step, stream=STREAM_CELLS)
        now_written = masked & (drawn < unmask)
        now_masked = written & (drawn < remask)
        writes.append(_with_step(now_written, step))
        remasks.append(_with_step(now_masked, step))
        masked = (masked & ~now_written) | now_masked
        written = (written & ~now_masked) | now_written
    write = Events(*torch.cat(writes, dim=1))
    alpha = transitions.alpha.to(seeds.device)[write.step - 1]
    return Plan(len(seeds), write, alpha, Events(*torch.cat(remasks, dim=1)))


def plan_order(
    masked: Bool[Tensor, "rows length"],
    seeds: Int[Tensor, " rows"],
    schedule: NoiseSchedule,
    rank: Rank,
    chooser: Chooser,
    *,
    times: Plan | None = None,
) -> Plan:
    """Choose the cells of every turn by a rank and a quota that need no network.

    ``times`` is a plan with the times of the turns; None for the time at which the masked share of a row is
    the expected one.
    """
    start, num_start = masked, masked.sum(1)
    writes = [_with_step(torch.zeros_like(masked), 1)]
    alphas = [alpha_of_masked(schedule, masked, num_start)[:0]]
    while bool(masked.any()):
        view = View(seeds, len(writes), masked, start)
        chosen = chooser.choose(rank.scores(view), view)
        writes.append(_with_step(chosen, view.turn))
        alpha = (
            alpha_of_masked(schedule, masked, num_start) if times is None else times.alpha_of_rows(view.turn)
        )
        alphas.append(alpha[writes[-1][0]])
        masked = masked & ~chosen
    return Plan(len(seeds), Events(*torch.cat(writes, dim=1)), torch.cat(alphas))


@dataclass(frozen=True)
class PlannedCounts:
    """Takes as many cells as a plan writes, whichever these are."""

    plan: Plan

    def choose(self, scores: Tensor, view: View) -> Tensor:
        """The best cells by score."""
        return take_top(scores, self.plan.counts(view.turn), view.masked)

    def gap(self, scores: Tensor, view: View, chosen: Tensor) -> Tensor:
        """Between the last cell chosen and the first one not chosen."""
        return gap_of_ranks(scores, view, chosen)


def alpha_of_masked(
    schedule: NoiseSchedule, masked: Bool[Tensor, "rows length"], num_start: Int[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """alpha of rows without planned times: at the time when the masked share is the expected one."""
    return alpha_of_share(schedule, masked.sum(1) / num_start.clamp(min=1).to(torch.float64))


def alpha_of_share(schedule: NoiseSchedule, share: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """alpha at the time when a ``share`` in [0, 1] of the cells masked at t = 1 still is."""
    return 1 - share * (1 - schedule.alpha(torch.ones_like(share)))


def _with_step(cells: Tensor, step: int) -> Tensor:
    """(3, cells) row, column and step of the marked cells (rows, length)."""
    row, column = cells.nonzero(as_tuple=True)
    return torch.stack([row, column, torch.full_like(row, step)])
