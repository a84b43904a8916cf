"""Insertions of one part of the time in rounds, in which a slot receives one token at most.

Tokens of one evaluation are drawn independently. Two of them in one slot would be neighbours that do not
depend on each other, so a round ends before a slot is drawn again, and that draw is dropped; the next round
has an evaluation of its own. It is read at an earlier time of the part, as if the tokens came evenly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from xlm_did.clocks_did import Jump
from xlm_did.insertion_did import Pairs, Text
from xlm_did.replay_did import Drawn, Recorded, Uniforms


@dataclass
class Rounds:
    """Draws jumps, and the insertions of each in rounds."""

    source: Drawn | Recorded
    rest: Int[Tensor, " rows"]
    """Tokens of its part that each row still gets."""
    log_time: Float64[Tensor, " rows"]
    """log of the time at which its next round is read, if there is a rest."""
    log_next: Float64[Tensor, " rows"]
    """log of the time after its part."""

    @staticmethod
    def start(source: Drawn | Recorded, seeds: Tensor) -> "Rounds":
        """Before the first evaluation."""
        times = (torch.zeros_like(seeds, dtype=torch.float64) for _ in range(2))
        return Rounds(source, torch.zeros_like(seeds), *times)

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """A draw, or the rest of the last one."""
        [new] = (self.rest[rows] == 0).nonzero(as_tuple=True)
        if len(new) > 0:
            jump = self.source.jump(rows[new], log_a[new], log_time[new], uniforms[new])
            self.rest[rows[new]] = jump.number
            self.log_time[rows[new]], self.log_next[rows[new]] = jump.log_time, jump.log_next
        return Jump(self.rest[rows], self.log_time[rows], self.log_next[rows])

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Independent draws of pairs up to the first one whose slot has a token."""
        slots, tokens = pairs.draw_many(number, most, uniforms)
        index = torch.arange(most, device=number.device)
        is_same = (slots.unsqueeze(2) == slots.unsqueeze(1)) & (index < index.unsqueeze(1))
        is_again = is_same.any(2) & (index < number.unsqueeze(1))
        ends = is_again.any(1)
        made = is_again.byte().argmax(1).where(ends, number) if most > 0 else number
        left = number - made
        start, end = self.log_time[rows].exp(), self.log_next[rows].exp()
        self.log_time[rows] = (end + (start - end) * left / number.clamp(min=1)).log()
        self.rest[rows] = left
        if isinstance(self.source, Recorded):
            self.source.note(rows, pairs, slots, tokens, made)
            used = torch.zeros_like(pairs.cells.exists)
            row, place = (index < made.unsqueeze(1)).nonzero(as_tuple=True)
            used[row, slots[row, place]] = True
            again = pairs.slot_log_probs().masked_fill(~used, -torch.inf).logsumexp(1)
            self.source.place_log_prob[rows] += again.where(ends, 0.0)
        return slots, tokens, made
