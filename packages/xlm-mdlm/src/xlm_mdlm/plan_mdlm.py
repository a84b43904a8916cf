"""Plans: which cells are written when, settled before the network is evaluated at all.

In masked diffusion *whether* a cell is unmasked in a step does not depend on the network, only *what* is
written does. So the steps of all cells can be drawn first. A row then needs the network only in the steps
that write something in it: these are its *turns*, numbered from 1 without gaps. Rows take their turns
together, whatever the steps behind them are, so a batch costs as many calls of the network as its busiest row
has turns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from xlm_mdlm.canvas_mdlm import Canvas


@dataclass(frozen=True)
class Events:
    """Cells to which something happens in a step, (events,) each, in any order."""

    row: Tensor
    column: Tensor
    step: Tensor
    """From 1."""


@dataclass(frozen=True)
class Plan:
    """What happens to the rows of a canvas.

    Args:
        writes: Cells that get a token, drawn from the prediction for the row as it is before the step.
        noise: -log alpha at that time, for each write, (writes,); the same for all writes of a row's step.
        remasks: Written cells that are masked again, at the end of their step; None for a process that never
            does so. Its plan ends early for a row whose text is complete up to its end, since what is still
            masked behind the end changes nothing.
    """

    writes: Events
    noise: Tensor
    remasks: Events | None = None

    def carry_out(self, canvas: Canvas) -> None:
        """Write the cells of the canvas, turn by turn."""
        turns = _Turns.of(self.writes)
        remasks = None if self.remasks is None else turns.group(self.remasks)
        for turn, planned in enumerate(turns.group(self.writes), start=1):
            write = planned
            if remasks is None:
                write = planned[canvas.waiting()[self.writes.row[planned]]]
                if len(write) == 0:
                    return
            row, column = self.writes.row[write], self.writes.column[write]
            logits = canvas.evaluate(row, column, self.noise[write])
            canvas.write(row, column, logits, turn=turn)
            if self.remasks is not None and remasks is not None:
                remask = remasks[turn - 1]
                canvas.remask(self.remasks.row[remask], self.remasks.column[remask], turn=turn)


@dataclass(frozen=True)
class _Turns:
    """The turns of all rows, row by row."""

    keys: Tensor
    """(turns,) row * num_steps + step, ascending; num_steps exceeds every step."""
    num_steps: int

    @staticmethod
    def of(writes: Events) -> "_Turns":
        num_steps = 1 + (int(writes.step.max()) if len(writes.step) > 0 else 0)
        return _Turns(keys=torch.unique(writes.row * num_steps + writes.step), num_steps=num_steps)

    def group(self, events: Events) -> list[Tensor]:
        """For each turn, from 1, the indices of the events from its step on up to the next turn's."""
        start = events.row * self.num_steps
        before_row = torch.searchsorted(self.keys, start)
        turn = torch.searchsorted(self.keys, start + events.step, right=True) - before_row
        num_turns = int(torch.bincount(self.keys // self.num_steps, minlength=1).max())
        sizes = torch.bincount(turn, minlength=num_turns + 1).tolist()
        return list(turn.argsort(stable=True).split(sizes))[1:]
