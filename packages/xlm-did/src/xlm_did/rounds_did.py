"""Insertions in rounds: an evaluation inserts several tokens, but a slot receives one of them at most.

If n tokens are missing, their times are independent and uniform. A round takes their number, reads the
distribution of slots and tokens at the latest of the times, and inserts k of the n tokens, whose time is the
k-th latest:

    n ~ P(n missing | x, u)
    slots = those of the n points (v + i) / n, i = 0, ..., n - 1, in the cumulative probabilities of the slots
    x, u = x with a token in each of these slots, the time of the last of them

Of independent draws some would miss a slot that surely lacks a token. The points lie evenly (systematic
sampling), so that a slot in which s of the n tokens are expected has floor(s) of them or one more: one token
is inserted, the others are drawn again in the next round, from an evaluation that sees it.

The number is drawn anew in each round, or only at the start of each of N parts of the time. With one token a
round the first is the first-hitting sampler.

Two rules say which slots wait. They are off by default, and of use where networks err:

- A slot in which hardly a token is expected gets none while another slot lacks more. A complete word keeps
  a little probability, so that with a large n a point may fall into its slots.
- Slots on both sides of a token that lack one token or so each, as those beside the middle of a name, wait
  for each other while a slot lacks several, which takes further rounds.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import categorical, require
from xlm_did.clocks_did import FirstHitting, Jump
from xlm_did.insertion_did import Pairs, Text
from xlm_did.missing_did import log_at
from xlm_did.replay_did import Drawn, Recorded, Uniforms

_SEVERAL = 2
"""Tokens expected in a slot that will take further rounds, in which others can catch up."""


@dataclass(frozen=True)
class RoundRules:
    """Which slots receive a token in a round."""

    insertions: Literal["one", "apart"]
    """With "apart" the slots on both sides of a token wait for each other."""
    most: int | None
    """The most tokens of a round; None for one in each slot."""
    least_expected: float
    """Tokens expected in a slot that gets one, unless no slot expects so many."""

    @staticmethod
    def of(
        insertions: Literal["any", "one", "apart"], insertions_per_step: int | None, least_expected: float
    ) -> "RoundRules | None":
        """The rules that these options of the predictor name; None for no rounds.

        Raises:
            ValueError: If an option is outside its range, or has no effect without rounds.
        """
        require(insertions in ("any", "one", "apart"), "insertions", insertions, "'any', 'one' or 'apart'")
        number = insertions_per_step
        require(number is None or number >= 1, "insertions_per_step", number, "None or at least 1")
        require(0 <= least_expected <= 1, "least_expected", least_expected, "from 0 to 1")
        if insertions != "any":
            return RoundRules(insertions, number, least_expected)
        allowed = "without insertions='one' or 'apart'"
        require(number is None, "insertions_per_step", number, f"None {allowed}")
        require(least_expected == 0, "least_expected", least_expected, f"0 {allowed}")
        return None


@dataclass
class Rounds:
    """Draws numbers of missing tokens, and their insertions in rounds."""

    source: Drawn | Recorded
    """Its clock has the parts of the time; :class:`xlm_did.clocks_did.FirstHitting`: there are none."""
    rules: RoundRules
    rest: Int[Tensor, " rows"]
    """Tokens of its part that each row still gets."""
    time: Float64[Tensor, " rows"]
    """Below which the missing tokens of a row appear."""
    end: Float64[Tensor, " rows"]
    """Above which those of its part do."""

    @staticmethod
    def start(source: Drawn | Recorded, rules: RoundRules, seeds: Tensor) -> "Rounds":
        """Before the first evaluation."""
        nothing = torch.zeros_like(seeds, dtype=torch.float64)
        return Rounds(source, rules, torch.zeros_like(seeds), torch.ones_like(nothing), nothing)

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """What is missing, or the rest of the part, at the latest time of these tokens."""
        if self._has_parts():
            [new] = (self.rest[rows] == 0).nonzero(as_tuple=True)
            if len(new) > 0:
                jump = self.source.jump(rows[new], log_a[new], log_time[new], uniforms[new])
                self.rest[rows[new]] = jump.number
                self.time[rows[new]], self.end[rows[new]] = jump.log_time.exp(), jump.log_next.exp()
            number = self.rest[rows]
        else:
            log_probs = log_at(log_a, self.time[rows].log())
            number = categorical(log_probs, uniforms[:, 0])
            if isinstance(self.source, Recorded):
                drawn = log_probs.log_softmax(1).gather(1, number.unsqueeze(1)).squeeze(1)
                self.source.place_log_prob[rows] += drawn
        start, end = self.time[rows], self.end[rows]
        self.time[rows] = end + (start - end) * uniforms[:, -1] ** (1 / number.clamp(min=1))
        # Without parts a row ends when nothing is missing, not at a time.
        log_next = end.log() if self._has_parts() else start.log()
        return Jump(number, self.time[rows].log(), log_next)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A token in each slot that has one of the points, or in some of these slots."""
        first, order, of_tokens, of_times = uniforms(1 + 3 * most).split([1, most, most, most], dim=1)
        index = torch.arange(most, device=number.device)
        due = index < number.unsqueeze(1)
        points = (first + order.masked_fill(~due, 1.0).argsort(1)) / number.clamp(min=1).unsqueeze(1)
        probs = pairs.slot_log_probs().exp()
        slots = slots_of_points(probs, points)
        first_point = _first_points(slots.masked_fill(~due, 0), due, probs.shape[1])
        expected = (probs * number.unsqueeze(1)).where(first_point < most, 0.0)
        receives = self._receiving(expected, text.position_ids[rows].gather(1, pairs.cells.column))
        wanted = due & (first_point.gather(1, slots) == index) & receives.gather(1, slots)
        if self.rules.most is not None:
            wanted &= wanted.cumsum(1) <= self.rules.most
        slots = slots.gather(1, wanted.byte().argsort(dim=1, descending=True, stable=True))
        inserted = wanted.sum(1)
        row, place = (index < inserted.unsqueeze(1)).nonzero(as_tuple=True)
        tokens = torch.zeros_like(slots)
        tokens[row, place] = pairs.draw_tokens(row, slots[row, place], of_tokens[row, place])
        # The time of the k-th latest: of i times below u the latest is u v^(1 / i).
        below = (number.unsqueeze(1) - index).clamp(min=1)
        is_later = (index > 0) & (index < inserted.unsqueeze(1))
        ratio = (of_times.log() / below).where(is_later, 0.0).sum(1).exp()
        self.time[rows] = self.end[rows] + (self.time[rows] - self.end[rows]) * ratio
        self.rest[rows] = number - inserted
        if isinstance(self.source, Recorded):
            self.source.note(rows, pairs, slots, tokens, inserted)
        return slots, tokens, inserted

    def _receiving(self, expected: Tensor, positions: Tensor) -> Tensor:
        """(rows, slots) slots that may get a token, by the tokens expected in those with a point."""
        heaviest = expected.amax(1, keepdim=True)
        receives = expected >= heaviest.clamp(max=self.rules.least_expected)
        if self.rules.insertions == "apart":
            waits = waiting(expected.where(receives, 0.0), positions)
            receives &= ~waits | (heaviest < _SEVERAL)
        return receives

    def _has_parts(self) -> bool:
        return not isinstance(self.source.clock, FirstHitting)


def slots_of_points(
    probs: Float64[Tensor, "rows slots"], points: Float64[Tensor, "rows numbers"]
) -> Int[Tensor, "rows numbers"]:
    """The slot in whose interval of the cumulative probabilities each point of [0, 1) lies."""
    cumulative = probs.cumsum(1)
    # 1 from the last slot with probability on, so that no point is in a slot without.
    cumulative = cumulative / cumulative[:, -1:]
    below_one = 1 - torch.finfo(points.dtype).eps
    return torch.searchsorted(cumulative, points.clamp(max=below_one).contiguous(), right=True)


def waiting(
    expected: Float64[Tensor, "rows slots"], positions: Int[Tensor, "rows slots"]
) -> Bool[Tensor, "rows slots"]:
    """Slots that lack a token or so and wait for one beside them that does: the one that lacks less.

    Of equal ones the right one waits.

    Args:
        expected: Tokens expected in each slot; 0 in slots that get none.
        positions: Of the token left of each slot, shape (rows, slots).
    """
    # Slots without a token to expect may have the position of another one, and are beside none.
    positions, order = positions.sort(dim=1)
    expected = expected.gather(1, order)
    is_light = (expected > 0) & (expected < _SEVERAL)
    left, right = expected[:, :-1], expected[:, 1:]
    beside = (positions.diff(dim=1) == 1) & is_light[:, :-1] & is_light[:, 1:]
    waits = F.pad(beside & (left >= right), (1, 0)) | F.pad(beside & (left < right), (0, 1))
    return torch.zeros_like(waits).scatter(1, order, waits)


def _first_points(
    slots: Int[Tensor, "rows numbers"], due: Bool[Tensor, "rows numbers"], num_slots: int
) -> Int[Tensor, "rows slots"]:
    """The first of the due points of each slot; their number, which none has, in slots without."""
    index = torch.arange(slots.shape[1], device=slots.device).expand(slots.shape)
    behind = index.masked_fill(~due, slots.shape[1])
    earliest = behind.new_full((len(slots), num_slots), slots.shape[1])
    return earliest.scatter_reduce_(1, slots, behind, reduce="amin")
