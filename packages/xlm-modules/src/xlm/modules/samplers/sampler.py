"""The sampler of the masked families: rank x quota x what x revise x stop, in one loop.

    while not all rows are stopped:
        cells = cells to look at: planned ones, or all masked cells where the network ranks them
        logits = network(x)[cells]
        chosen = all of them if planned, else quota(rank(logits))       # where
        x[chosen] = writer(logits[chosen])                              # what
        x[again] = MASK                                                 # revise

If possible the cells are settled before the network is evaluated (:mod:`xlm.modules.samplers.plans`), and
steps that write nothing in a row are skipped. Otherwise each turn evaluates the rows that are not stopped at
all their masked cells, and a network conditioned on time gets the time at which the masked share of a row
is the expected one. What is written is up to the writer (:mod:`xlm.modules.writer`).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules.options import require
from xlm.modules.random import row_seeds, uniform
from xlm.modules.records import UserEdit
from xlm.modules.samplers.canvas import Canvas, Denoiser, Text
from xlm.modules.samplers.plans import (
    Plan,
    PlannedCounts,
    alpha_of_masked,
    plan_hits,
    plan_order,
    plan_remasking,
    plan_steps,
)
from xlm.modules.samplers.process import P2, RemaskByConfidence, Revision
from xlm.modules.samplers.quotas import Chooser, Count, Hazard, Quota, Threshold
from xlm.modules.samplers.ranks import (
    STREAM_CELLS,
    Confident,
    Drawn,
    Random,
    Rank,
    View,
    log_prob_of,
    take_top,
)
from xlm.modules.samplers.speculation import Speculation
from xlm.modules.schedules import NoiseSchedule
from xlm.modules.writer import Draw, Writer


@dataclass(frozen=True)
class Turn:
    """One evaluation of some rows, and what becomes of it."""

    number: int
    """From 1; numbers may be missing."""
    row: Int[Tensor, " cells"]
    """Row of each cell whose logits are computed."""
    column: Int[Tensor, " cells"]
    alpha: Float64[Tensor, " rows"]
    """Of every row of the canvas, the time input of the network."""
    apply: Callable[[Tensor], None]
    """Writes to the canvas, from the logits (cells, vocab)."""


@dataclass(frozen=True)
class Sampler:
    """Writes the masked cells of rows; see :func:`xlm.modules.samplers.compose` for the known combinations.

    Args:
        rank: The order of the cells.
        quota: How many of them a turn writes.
        revise: Which written cells are masked again; None for none.
        stop: "filled": a row leaves when no cell is masked; "ended": when none is left of the end of its
            text, which is the same text for fewer evaluations. With ``revise`` rows run to the end.
        num_steps: For a quota that does not bound them itself, the most evaluations of a row, whose last one
            writes all that is left; None for no limit.
        speculate: The most turns of a row to evaluate in one call, with the same texts
            (:mod:`xlm.modules.samplers.speculation`); None for one after another. Where tokens are recorded,
            scored or edited, it is one after another too.

    Raises:
        ValueError: If the parts do not fit together, with the reason.
    """

    rank: Rank
    quota: Quota
    revise: Revision | None = None
    stop: Literal["filled", "ended"] = "ended"
    num_steps: int | None = None
    speculate: int | None = None

    def __post_init__(self) -> None:
        if (reason := _misfit(self.rank, self.quota, self.revise)) is not None:
            raise ValueError(reason)
        bounded = isinstance(self.quota, Count | Hazard)
        if self.num_steps is not None and (bounded or self.num_steps < 1):
            raise ValueError(f"num_steps={self.num_steps}: at least 1, and {self.quota} has its own")
        require(self.speculate is None or self.speculate >= 1, "speculate", self.speculate, "at least 1")
        if self.speculate is not None and not self.is_planned:
            raise ValueError(
                f"speculate={self.speculate} needs cells that are planned without the network, not "
                f"{self.rank} with {self.quota}: the next cell depends on the token just drawn, so drafts "
                "are seldom right; set it to null"
            )

    @property
    def order(self) -> Literal["text", "seed", "tokens"]:
        """What the order of the cells depends on.

        "text": on the written text alone. "seed": also on random numbers that do not depend on the text.
        "tokens": on drawn tokens, so that a text has no likelihood by replay.
        """
        if isinstance(self.rank, Drawn) or (self.revise is not None and not self.revise.is_planned):
            return "tokens"
        return "seed" if isinstance(self.rank, Random) or isinstance(self.quota, Hazard) else "text"

    @property
    def is_planned(self) -> bool:
        """Whether the cells of every turn are known before the network is evaluated."""
        needs_logits = self.rank.needs_logits or self.quota.needs_logits
        return not needs_logits and (self.revise is None or self.revise.is_planned)

    def plan(
        self, masked: Bool[Tensor, "rows length"], seeds: Int[Tensor, " rows"], schedule: NoiseSchedule
    ) -> Plan:
        """The cells of every turn; of a rank that needs the network only their number and times count.

        Raises:
            ValueError: If the quota depends on the network.
        """
        rank, quota = self.rank, self.quota
        if isinstance(quota, Hazard):
            if quota.num_steps is None:
                plan = plan_hits(masked, seeds, schedule)
            elif self.revise is None:
                plan = plan_steps(masked, seeds, schedule, quota.num_steps)
            elif isinstance(self.revise, P2 | RemaskByConfidence):
                raise ValueError(f"{self.revise} has no plan: it depends on the network")
            else:
                plan = plan_remasking(masked, seeds, self.revise.transitions(schedule, quota.num_steps))
            if isinstance(rank, Random) or rank.needs_logits:
                return plan
            return plan_order(masked, seeds, schedule, rank, PlannedCounts(plan), times=plan)
        if not self.is_planned:
            raise ValueError(f"{quota} with {rank} has no plan: it depends on the network")
        return plan_order(masked, seeds, schedule, rank, quota.begin())

    def fill(self, canvas: Canvas) -> int:
        """Write the masked cells of a canvas, and return the number of the last turn."""
        is_drawn = isinstance(canvas.writer, Draw) and canvas.user_edit is None
        if self.speculate is not None and is_drawn:
            plan = self.plan(canvas.masked, canvas.seeds, canvas.denoiser.schedule)
            return Speculation(canvas, plan, self.running, self.speculate).fill()
        last = 0
        for turn in self._turns(canvas):
            turn.apply(canvas.evaluate(turn.row, turn.column, turn.alpha))
            canvas.edit(turn.number)
            last = turn.number
        return last

    def _turns(self, canvas: Canvas) -> Iterator[Turn]:
        """The turns, each made after the one before was applied."""
        if isinstance(self.revise, P2):
            return _path_planning(self, self.revise, canvas)
        if isinstance(self.revise, RemaskByConfidence):
            return _remasking_by_confidence(self, self.revise, canvas)
        return _planned(self, canvas) if self.is_planned else _ranked(self, canvas)

    def running(self, canvas: Canvas) -> Bool[Tensor, " rows"]:
        """True at rows that are not stopped."""
        if self.stop == "filled" or self.revise is not None:
            return canvas.masked.any(1)
        return canvas.waiting()


def _misfit(rank: Rank, quota: Quota, revise: Revision | None) -> str | None:
    """Why the parts do not fit together; None if they do."""
    if isinstance(quota, Threshold):
        if rank.certain is None:
            return (
                f"quota=threshold needs a rank by confidence: top_prob, margin, entropy or drawn, not {rank}"
            )
        if rank.certain == 0 and not quota.tau < 0:
            return f"tau must be below 0, in nats, with rank=entropy, got {quota.tau}"
        if rank.certain > 0 and not 0 <= quota.tau < rank.certain:
            return f"tau must be in [0, {rank.certain:g}), got {quota.tau}"
    if isinstance(revise, P2):
        if not isinstance(quota, Count):
            return f"revise=p2 needs quota=count, which fixes how many cells stay masked, not {quota}"
        is_top_prob = isinstance(rank, Confident) and rank.kind == "top_prob"
        if not (isinstance(rank, Random | Drawn) or is_top_prob):
            return f"revise=p2 compares log-probabilities: rank must be random, drawn or top_prob, not {rank}"
    elif revise is not None:
        if not isinstance(quota, Hazard) or quota.num_steps is None:
            return f"revise=remdm follows the steps of quota=hazard, not {quota}"
        if not isinstance(rank, Random):
            return f"revise=remdm masks and writes cells by rank=random, not {rank}"
    return None


def _planned(sampler: Sampler, canvas: Canvas) -> Iterator[Turn]:
    """Carry out a plan. A row without remasking leaves when it is stopped."""
    plan = sampler.plan(canvas.masked, canvas.seeds, canvas.denoiser.schedule)
    for number, write in enumerate(plan.turns, start=1):
        row, column = plan.writes.row[write], plan.writes.column[write]
        alpha = plan.alpha_of_rows(number)
        if plan.remasks is None:
            left = sampler.running(canvas)[row]
            row, column = row[left], column[left]
            if len(row) == 0:
                return
        yield Turn(number, row, column, alpha, partial(_draw_and_write, canvas, row, column, number))
        if plan.remasks is not None:
            again = plan.remask_turns[number - 1]
            canvas.remask(plan.remasks.row[again], plan.remasks.column[again], number)


def _draw_and_write(canvas: Canvas, row: Tensor, column: Tensor, number: int, logits: Tensor) -> None:
    canvas.write(row, column, canvas.draw(row, column, logits, number), number)


def _ranked(sampler: Sampler, canvas: Canvas) -> Iterator[Turn]:
    """Evaluate all masked cells of the rows that are not stopped, and let the network choose among them."""
    num_start, schedule = canvas.masked.sum(1), canvas.denoiser.schedule
    plan = sampler.plan(canvas.masked, canvas.seeds, schedule) if isinstance(sampler.quota, Hazard) else None
    chooser = sampler.quota.begin() if plan is None else PlannedCounts(plan)
    for number in itertools.count(1):
        masked = canvas.masked & sampler.running(canvas).unsqueeze(1)
        row, column = masked.nonzero(as_tuple=True)
        if len(row) == 0:
            return
        alpha = alpha_of_masked(schedule, masked, num_start) if plan is None else plan.alpha_of_rows(number)
        view = View(canvas.seeds, number, masked, canvas.start)
        yield Turn(number, row, column, alpha, partial(_choose_and_write, sampler, canvas, view, chooser))


def _choose_and_write(sampler: Sampler, canvas: Canvas, view: View, chooser: Chooser, logits: Tensor) -> None:
    row, column = view.masked.nonzero(as_tuple=True)
    drawn = canvas.draw(row, column, logits, view.turn) if isinstance(sampler.rank, Drawn) else None
    view = replace(view, logits=logits, tokens=drawn)
    if view.turn == sampler.num_steps:
        chosen = view.masked
    else:
        scores = sampler.rank.scores(view)
        chosen = chooser.choose(scores, view)
        rows = view.masked.any(1)
        canvas.writer.note_gap(canvas.window.rows[rows], lambda: chooser.gap(scores, view, chosen)[rows])
    at = chosen[row, column]
    row, column = row[at], column[at]
    tokens = canvas.draw(row, column, logits[at], view.turn) if drawn is None else drawn[at]
    canvas.write(row, column, tokens, view.turn)


def _path_planning(sampler: Sampler, revise: P2, canvas: Canvas) -> Iterator[Turn]:
    """Every turn evaluates all cells that are or were masked."""
    num_start = canvas.masked.sum(1)
    for number in itertools.count(1):
        running = canvas.masked.any(1).unsqueeze(1)
        row, column = (canvas.start & running).nonzero(as_tuple=True)
        if len(row) == 0:
            return
        masked = canvas.masked.clone()
        alpha = alpha_of_masked(canvas.denoiser.schedule, masked, num_start)
        view = View(canvas.seeds, number, masked, canvas.start)
        yield Turn(number, row, column, alpha, partial(_keep_lowest_masked, sampler, revise, canvas, view))


def _keep_lowest_masked(sampler: Sampler, revise: P2, canvas: Canvas, view: View, logits: Tensor) -> None:
    assert isinstance(sampler.quota, Count)
    mutable = canvas.start & view.masked.any(1, keepdim=True)
    row, column = mutable.nonzero(as_tuple=True)
    empty = view.masked[row, column]
    tokens = canvas.input_ids[row, column]
    tokens[empty] = canvas.draw(row[empty], column[empty], logits[empty], view.turn)
    view = replace(view, logits=logits[empty], tokens=tokens[empty])
    least = torch.finfo(torch.float64).min
    scores = torch.full(mutable.shape, -math.inf, dtype=torch.float64, device=mutable.device)
    scores[row, column] = revise.eta * log_prob_of(logits, tokens).clamp(min=least)
    scores = sampler.rank.scores(view).clamp(min=0).log().where(view.masked, scores)
    num_left = view.masked.sum(1) - sampler.quota.counts(view)
    lowest = take_top(-scores, num_left, mutable)
    write = (view.masked & ~lowest)[row, column]
    canvas.write(row[write], column[write], tokens[write], view.turn)
    again = mutable & ~view.masked & lowest
    row, column = again.nonzero(as_tuple=True)
    canvas.remask(row, column, view.turn)


def _remasking_by_confidence(sampler: Sampler, revise: RemaskByConfidence, canvas: Canvas) -> Iterator[Turn]:
    """Step by step: a row is evaluated in steps that write one of its cells. Turns are numbers of steps."""
    assert isinstance(sampler.quota, Hazard)
    assert sampler.quota.num_steps is not None
    transitions = revise.transitions(canvas.denoiser.schedule, sampler.quota.num_steps)
    steps = zip(*(values.tolist() for values in vars(transitions).values()), strict=False)
    probability = torch.full(canvas.start.shape, math.inf, dtype=torch.float64, device=canvas.seeds.device)
    for number, (alpha, unmask, largest) in enumerate(steps, start=1):
        drawn = uniform(canvas.seeds, canvas.masked.shape[1], step=number, stream=STREAM_CELLS)
        row, column = (canvas.masked & (drawn < unmask)).nonzero(as_tuple=True)
        # Cells written before this step compete for being masked again.
        again = (drawn < largest * (-probability).softmax(1).nan_to_num(0.0)) & ~canvas.masked & canvas.start
        if len(row) > 0:
            write = partial(_write_and_remember, canvas, probability, row, column, number)
            yield Turn(number, row, column, torch.full_like(drawn[:, 0], alpha), write)
        row, column = again.nonzero(as_tuple=True)
        canvas.remask(row, column, number)
        probability[again] = math.inf


def _write_and_remember(
    canvas: Canvas, probability: Tensor, row: Tensor, column: Tensor, number: int, logits: Tensor
) -> None:
    """Write, and keep the probability of each token."""
    tokens = canvas.draw(row, column, logits, number)
    probability[row, column] = log_prob_of(logits, tokens).exp()
    canvas.write(row, column, tokens, number)


@dataclass(frozen=True)
class Filled:
    """What filling a text took."""

    nfe: Int[Tensor, " rows"]
    calls: Int[Tensor, " rows"]
    states: Int[Tensor, " rows"]
    edits: list[Tensor]
    """Tables (5, edits) for :meth:`xlm.modules.samplers.Text.trace`."""


def fill(
    text: Text,
    sampler: Sampler,
    denoiser: Denoiser,
    writer: Writer,
    seeds: Int[Tensor, " rows"],
    *,
    window_length: int | None = None,
    stride: int | None = None,
    edit: UserEdit | None = None,
) -> Filled:
    """Write the masked cells of a text.

    Args:
        text: The rows, written in place.
        sampler: Which cells are written when.
        denoiser: The network.
        writer: Where the tokens come from.
        seeds: The source of all draws.
        window_length: The most cells to show to the network at once, window after window; None for no limit.
        stride: Cells that each further window adds.
        edit: An edit of the user behind one of the turns; None for none.

    Raises:
        ValueError: If the sampler does not see the cell of the edit in its turn, or the row has no such turn.
    """
    nfe, calls, states = (torch.zeros_like(seeds) for _ in range(3))
    edits: list[Tensor] = []
    num_turns, is_edited = 0, edit is None
    for number, span in enumerate(text.spans(window_length, stride or 1)):
        window = text.window(span)
        if len(window.rows) == 0:
            continue
        # Columns and turns are the same in every window, so its draws get seeds of their own.
        own_seeds = seeds if number == 0 else row_seeds(number, 0, seeds)
        canvas = Canvas(
            denoiser=denoiser.of_rows(window.rows),
            writer=writer,
            window=window,
            input_ids=window.show(text.input_ids),
            masked=window.show(text.masked) & window.exists,
            may_end=window.show(text.may_end) & window.exists,
            seeds=own_seeds[window.rows],
            user_edit=text.place(edit, window, num_turns),
        )
        last = sampler.fill(canvas)
        is_edited |= canvas.user_edit is not None and canvas.user_edit.is_done
        text.put(window, canvas.input_ids, canvas.masked)
        nfe[window.rows] += canvas.nfe
        calls[window.rows] += canvas.calls
        states[window.rows] += canvas.states
        edits += [_later(edit, num_turns) for edit in canvas.edits]
        num_turns += last
    if edit is not None and not is_edited:
        raise ValueError(f"the row has no step {edit.step}")
    return Filled(nfe, calls, states, edits)


def _later(edits: Tensor, num_turns: int) -> Tensor:
    """The edits with their steps behind those of the windows before."""
    return torch.cat([edits[:1] + num_turns, edits[1:]])
