"""Follows the trace of a generation, with the log-probabilities of its jumps and insertions."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from xlm.modules.records import Trace
from xlm_did.clocks_did import Clock, Jump
from xlm_did.insertion_did import Pairs, Text
from xlm_did.replay_did import Uniforms


@dataclass
class Followed:
    """Inserts what a trace does, and notes the log-probabilities with gradient.

    A trace has no times: they are drawn again, and are those of the generation if network and seeds are.
    """

    clock: Clock
    trace: Trace
    edits: Int[Tensor, "rows most"]
    """Numbers of the insertions of each row, in order."""
    total: Int[Tensor, " rows"]
    """How many there are."""
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of the jumps, so far."""
    taken: Int[Tensor, " rows"] = field(init=False)
    """How many are in the row."""
    step: Int[Tensor, " rows"] = field(init=False)
    """The evaluation that each row is at."""
    followed: list[Tensor] = field(default_factory=list[Tensor])
    """Numbers of insertions, (able,) each."""
    log_probs: list[Tensor] = field(default_factory=list[Tensor])
    """Their nats."""

    def __post_init__(self) -> None:
        self.taken = torch.zeros_like(self.total)
        self.step = torch.zeros_like(self.total)

    @staticmethod
    def start(clock: Clock, trace: Trace, num_rows: int) -> "Followed":
        """Before the first evaluation."""
        [numbers] = (trace.step > 0).nonzero(as_tuple=True)
        total = torch.bincount(trace.row[numbers], minlength=num_rows)
        exists = torch.arange(int(total.max()) if num_rows > 0 else 0, device=total.device)
        edits = torch.zeros(num_rows, len(exists), dtype=torch.int64, device=total.device)
        edits[exists < total.unsqueeze(1)] = numbers[trace.row[numbers].argsort(stable=True)]
        return Followed(clock, trace, edits, total, torch.zeros_like(total, dtype=torch.float64))

    # Copied from xlm_ilm.replay_ilm.Followed.finish
    def finish(self) -> Float64[Tensor, " edits"]:
        """Nats of each edit of the trace, 0 at given tokens.

        Raises:
            ValueError: If the sampler ended a row earlier.
        """
        self._require(self.taken == self.total)
        log_prob = torch.zeros(self.trace.row.shape, dtype=torch.float64, device=self.total.device)
        if not self.log_probs:
            return log_prob
        return log_prob.scatter(0, torch.cat(self.followed), torch.cat(self.log_probs))

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """The draw of the generation; it has as many insertions as the trace in this step."""
        self.step[rows] += 1
        jump = self.clock.draw(log_a.detach(), log_time, uniforms)
        edits = self.edits[rows]
        later = torch.arange(edits.shape[1], device=edits.device) >= self.taken[rows].unsqueeze(1)
        exists = torch.arange(edits.shape[1], device=edits.device) < self.total[rows].unsqueeze(1)
        now = self.trace.step[edits] == self.step[rows].unsqueeze(1)
        self._require((later & exists & now).sum(1) == jump.number)
        log_prob = self.clock.log_prob(log_a, log_time, jump)
        self.place_log_prob = self.place_log_prob.index_add(0, rows, log_prob)
        return jump

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next insertions of each row."""
        slots, tokens = (number.new_zeros(len(rows), most) for _ in range(2))
        # Positions of the slots, which an insertion on their left moves.
        position = text.position_ids[rows].gather(1, pairs.cells.column)
        for index in range(most):
            able = (number > index).nonzero().squeeze(1)
            mine = rows[able]
            edit = self.edits[mine, self.taken[mine]]
            wanted = (self.trace.position[edit] + text.target_start[mine] - 1).unsqueeze(1)
            fits = pairs.cells.exists[able] & (position[able] == wanted)
            self._require(fits.any(1))
            slots[able, index], tokens[able, index] = fits.byte().argmax(1), self.trace.token[edit]
            self.followed.append(edit)
            self.log_probs.append(pairs.score(able, slots[able, index], tokens[able, index]))
            position[able] += position[able] > wanted
            self.taken[mine] += 1
        return slots, tokens, number

    def _require(self, follows: Tensor) -> None:
        if not bool(follows.all()):
            raise ValueError(
                "the trace is not one of this sampler with this network and these seeds: it inserts "
                "elsewhere, or another number of tokens in a step"
            )
