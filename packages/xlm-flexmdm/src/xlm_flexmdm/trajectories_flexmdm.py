"""Sources of recorded and of followed generations, with the log-probabilities of their draws.

How many masks arrive in a step, and which step unmasks how many, does not depend on the network and has no
part in the log-probability of a trajectory: what has are the tokens, and the slots that arrivals go into.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from xlm.modules import TokenSampling
from xlm.modules.records import INSERT, WRITE, FullTrace, Trace
from xlm_flexmdm.agenda_flexmdm import Arrivals
from xlm_flexmdm.text_flexmdm import Text


def by_step(edits: list[Tensor]) -> Trace:
    """The trace of edits that rows made at different times, in the order of the steps."""
    table = torch.cat(edits, dim=1)
    return Trace.of([table[:, table[0].argsort(stable=True)]])


@dataclass
class Recorded:
    """Draws everything, and notes the log-probabilities."""

    sampling: TokenSampling
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of the slots of the masks, so far."""
    log_probs: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of each edit, in order; 0 for a mask that is inserted."""
    entropies: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the distribution of each edit, in order; 0 for a mask that is inserted."""

    def write(self, text: Text, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens."""
        tokens = self.sampling.draw(logits, uniforms)
        log_prob, entropy = self.sampling.score_with_entropy(logits, tokens)
        self.log_probs.append(log_prob)
        self.entropies.append(entropy)
        return tokens

    def insert(self, text: Text, rows: Tensor, slots: Tensor, arrivals: Arrivals, step: Tensor, /) -> Tensor:
        """Drawn numbers."""
        counts = arrivals.draw()
        self.place_log_prob[rows] += arrivals.log_prob(counts)
        not_drawn = self.place_log_prob.new_zeros(int(counts.sum()))
        self.log_probs.append(not_drawn)
        self.entropies.append(not_drawn)
        return counts

    def note_gap(self, rows: Tensor, gap: Tensor, /) -> None:
        """Nothing is noted."""

    def full(self, edits: list[Tensor]) -> FullTrace:
        """The trace of the given edits and those that were recorded, in the order of the steps."""
        table = torch.cat(edits, dim=1)
        order = table[0].argsort(stable=True)
        given = self.place_log_prob.new_zeros(edits[0].shape[1])
        return FullTrace(
            *table[:, order],
            log_prob=torch.cat([given, *self.log_probs])[order],
            entropy=torch.cat([given, *self.entropies])[order],
            place_log_prob=self.place_log_prob,
        )


@dataclass
class Followed:
    """Writes and inserts what a trace does, and notes the log-probabilities with gradient."""

    sampling: TokenSampling
    trace: Trace
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of the slots of the masks, so far."""
    writes: Int[Tensor, "rows writes"]
    """Numbers of the edits of each row that write a token, in order."""
    masks: Int[Tensor, "rows masks"]
    """Numbers of those that insert a mask; -1 beyond them."""
    num_writes: Int[Tensor, " rows"]
    """Edits of each row that write a token."""
    num_written: Int[Tensor, " rows"]
    """Those that were taken over."""
    num_left: int
    """Masks that are still to be inserted, of all rows."""
    log_probs: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    """Numbers and nats of the edits that write a token."""

    @staticmethod
    def start(sampling: TokenSampling, trace: Trace, num_rows: int) -> "Followed":
        """Before the first step."""
        drawn = trace.step > 0
        writes, num_writes = _by_row(trace, drawn & (trace.operation == WRITE), num_rows)
        masks, num_masks = _by_row(trace, drawn & (trace.operation == INSERT), num_rows)
        return Followed(
            sampling=sampling,
            trace=trace,
            place_log_prob=torch.zeros_like(num_writes, dtype=torch.float64),
            writes=writes,
            masks=masks,
            num_writes=num_writes,
            num_written=torch.zeros_like(num_writes),
            num_left=int(num_masks.sum()),
        )

    def finish(self) -> Float64[Tensor, " edits"]:
        """Nats of each edit, 0 at masks and given tokens.

        Raises:
            ValueError: If the sampler took fewer steps.
        """
        self._require(bool((self.num_written == self.num_writes).all()) and self.num_left == 0)
        log_prob = torch.zeros_like(self.trace.row, dtype=torch.float64)
        if not self.log_probs:
            return log_prob
        edits, found = zip(*self.log_probs, strict=True)
        return log_prob.scatter(0, torch.cat(edits), torch.cat(found))

    def write(self, text: Text, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """The next tokens of each row; cells come row by row."""
        number = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        place = self.num_written[row] + number
        self._require(bool((place < self.num_writes[row]).all()))
        edit = self.writes[row, place]
        self._require(torch.equal(self.trace.position[edit], column - text.target_start[row]))
        tokens = self.trace.token[edit]
        self.log_probs.append((edit, self.sampling.score(logits, tokens)))
        self.num_written += torch.bincount(row, minlength=len(self.num_written))
        return tokens

    def insert(self, text: Text, rows: Tensor, slots: Tensor, arrivals: Arrivals, step: Tensor, /) -> Tensor:
        """The masks that the trace inserts in the step of each row."""
        masks = self.masks[rows]
        now = (masks >= 0) & (self.trace.step[masks.clamp(min=0)] == step.unsqueeze(1))
        # A gap counts the masks that were inserted on its left in the same step.
        gap = self.trace.position[masks.clamp(min=0)] - (now.cumsum(1) - 1)
        column = text.target_start[rows].unsqueeze(1) - 1 + gap
        inside = (column >= 0) & (column < slots.shape[1])
        self._require(bool((inside | ~now).all()))
        counts = torch.zeros(slots.shape, dtype=torch.int64, device=slots.device)
        counts = counts.scatter_add(1, column.where(now, 0), now.long())
        fits = (counts.sum(1) <= arrivals.number) & ~(counts.bool() & ~slots).any(1)
        self._require(bool(fits.all()))
        self.num_left -= int(now.sum())
        self.place_log_prob = self.place_log_prob.index_add(0, rows, arrivals.log_prob(counts))
        return counts

    def note_gap(self, rows: Tensor, gap: Tensor, /) -> None:
        """Nothing is noted."""

    def _require(self, follows: bool) -> None:
        if not follows:
            raise ValueError("the trace is not one of this sampler with these seeds: it changes other cells")


def _by_row(trace: Trace, chosen: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """(rows, most) numbers of the chosen edits of each row in order, -1 beyond them; (rows,) how many."""
    [numbers] = chosen.nonzero(as_tuple=True)
    total = torch.bincount(trace.row[numbers], minlength=num_rows)
    exists = torch.arange(int(total.max()) if num_rows > 0 else 0, device=total.device) < total.unsqueeze(1)
    table = torch.full(exists.shape, -1, dtype=torch.int64, device=total.device)
    table[exists] = numbers[trace.row[numbers].argsort(stable=True)]
    return table, total
