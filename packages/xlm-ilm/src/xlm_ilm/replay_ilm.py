"""Insertions that are not only drawn: a given text is forced, draws are recorded, or a trace is followed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from xlm.modules import TokenSampling, draw_places
from xlm.modules.records import Targets, Trace
from xlm_ilm.insertion_ilm import Pairs, Text
from xlm_ilm.types_ilm import ILMPromptBatch


@dataclass
class Guided:
    """Inserts the tokens of a text in a random order, guided by the sampler, with the weight of that order.

    Of the missing tokens j whose slot is free, one is drawn with probability a_j / A, where a_j is the
    sampler's probability of inserting j into its slot and A the sum of these, and the weight is multiplied by
    A; as well as by the probability that the row stops where it does. The expectation of the weight is the
    probability of the text, summed over all orders: each order of the tokens is one path of the sampler, with
    equal tokens too.
    """

    ids: Int[Tensor, "rows width"]
    exists: Bool[Tensor, "rows width"]
    present: Bool[Tensor, "rows width"]
    """True at tokens in the row."""
    num_missing: Int[Tensor, " rows"]
    """Tokens to insert."""
    log_weight: Float64[Tensor, " rows"]
    """Nats, so far."""
    smallest_gap: Float64[Tensor, " rows"] = field(init=False)
    """Least distance of a probability of stopping to its threshold, or of scores of slots."""

    def __post_init__(self) -> None:
        self.smallest_gap = torch.full_like(self.log_weight, math.inf)

    @staticmethod
    def start(batch: ILMPromptBatch, targets: Targets, uniforms: Float64[Tensor, "rows given"]) -> "Guided":
        """Nothing but the given tokens is in the rows.

        Where these fit to several places of the target, one fit is drawn, and its weight is their number.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        width = max(targets.ids.shape[1], 1)
        ids = nn.functional.pad(targets.ids, (0, width - targets.ids.shape[1]))
        exists = torch.arange(width, device=ids.device) < targets.lengths.unsqueeze(1)
        present, log_weight = torch.zeros_like(exists), torch.zeros(len(ids), dtype=torch.float64)
        num_given = batch["attention_mask"].sum(1) - batch["target_start"]
        for row in num_given.nonzero().squeeze(1).tolist():
            first, size = int(batch["target_start"][row]), int(num_given[row])
            places, number = draw_places(
                given=batch["input_ids"][row, first : first + size].tolist(),
                is_open=batch["open_slots"][row, first - 1 : first + size].tolist(),
                target=ids[row, : int(targets.lengths[row])].tolist(),
                uniforms=uniforms[row].tolist(),
            )
            if number == 0:
                raise ValueError(
                    f"target {row} does not hold the given tokens of its row, in their order and gaps"
                )
            present[row, places] = True
            log_weight[row] = math.log(number)
        missing = (exists & ~present).sum(1)
        return Guided(ids, exists, present, missing, log_weight.to(ids.device))

    def finish(self) -> Float64[Tensor, " rows"]:
        """The log-weights; -inf for a text that the row did not end with."""
        return self.log_weight.masked_fill(~self._is_complete(), -math.inf)

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        """A row stops when its text is complete, or has become impossible."""
        complete = self._is_complete()[rows]
        self.log_weight[rows] += torch.where(complete, chance, 1 - chance).log()
        self.smallest_gap[rows] = self.smallest_gap[rows].minimum(gap)
        return complete | (self.log_weight[rows] == -math.inf)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """A missing token and its slot; of a row that has none, anything, and its text is impossible."""
        mine = rows[able]
        slot = self._slots(text, mine, pairs.cells.column[able], free)
        row, place = (slot >= 0).nonzero(as_tuple=True)
        log_probs = torch.full(slot.shape, -math.inf, dtype=torch.float64, device=slot.device)
        token = self.ids[mine]
        log_probs[row, place] = pairs.score(able, free, row, slot[row, place], token[row, place])
        total = log_probs.logsumexp(1)
        self.log_weight[mine] += total
        possible = total > -math.inf
        shares = (log_probs - total.where(possible, 0.0).unsqueeze(1)).exp()
        chosen = TokenSampling().draw(shares.log().masked_fill(~possible.unsqueeze(1), 0.0), uniforms[:, 0])
        index = torch.arange(len(mine), device=mine.device)
        self.present[mine[possible], chosen[possible]] = True
        slot = slot[index, chosen].where(possible, free.byte().argmax(1))
        return slot, token[index, chosen]

    def note_gap(self, rows: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Keep the least gap of each row."""
        self.smallest_gap[rows] = self.smallest_gap[rows].minimum(gap())

    def _slots(self, text: Text, rows: Tensor, columns: Tensor, free: Tensor) -> Tensor:
        """(rows, width) the free slot in ``columns`` (rows, slots) of each missing token; -1: none."""
        position, size = text.position_ids[rows], text.size[rows]
        used = torch.arange(position.shape[1], device=position.device) < size.unsqueeze(1)
        slot_at = torch.full((len(rows), int(position.max()) + 1), -1, device=position.device)
        position_of_slot = position.gather(1, columns)
        row, slot = (free & used.gather(1, columns)).nonzero(as_tuple=True)
        slot_at[row, position_of_slot[row, slot]] = slot
        # Its slot is that of the last token on its left that is in the row.
        on_left = self.present[rows].cumsum(1) - self.present[rows].long()
        wanted = (text.target_start[rows].unsqueeze(1) - 1 + on_left).clamp(max=slot_at.shape[1] - 1)
        is_missing = self.exists[rows] & ~self.present[rows]
        return slot_at.gather(1, wanted).masked_fill(~is_missing, -1)

    def _is_complete(self) -> Tensor:
        return (self.present | ~self.exists).all(1)


@dataclass
class Recorded:
    """Draws stops and insertions, and notes their log-probabilities."""

    place_log_prob: Float64[Tensor, " rows"]
    """Nats of stopping or going on, so far."""
    log_probs: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the pairs of slot and token, (able,) for each insertion."""
    entropies: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the distributions of the pairs, (able,) for each insertion."""

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        """A draw."""
        stops = uniforms < chance
        self.place_log_prob[rows] += torch.where(stops, chance, 1 - chance).log()
        return stops

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """A draw of each pair."""
        slot, token = pairs.draw(able, free, uniforms)
        every = torch.arange(len(able), device=able.device)
        self.log_probs.append(pairs.score(able, free, every, slot, token))
        self.entropies.append(pairs.entropies(able, free))
        return slot, token

    def note_gap(self, rows: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Nothing is noted."""


@dataclass
class Followed:
    """Stops and inserts as a trace does, and notes the log-probabilities with gradient."""

    trace: Trace
    edits: Int[Tensor, "rows most"]
    """Numbers of the insertions of each row, in order."""
    total: Int[Tensor, " rows"]
    """How many there are."""
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of stopping or going on, so far."""
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
    def start(trace: Trace, num_rows: int) -> "Followed":
        """Before the first evaluation."""
        [numbers] = (trace.step > 0).nonzero(as_tuple=True)
        total = torch.bincount(trace.row[numbers], minlength=num_rows)
        exists = torch.arange(int(total.max()) if num_rows > 0 else 0, device=total.device)
        edits = torch.zeros(num_rows, len(exists), dtype=torch.int64, device=total.device)
        edits[exists < total.unsqueeze(1)] = numbers[trace.row[numbers].argsort(stable=True)]
        return Followed(trace, edits, total, torch.zeros_like(total, dtype=torch.float64))

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

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        """A row stops behind its last insertion."""
        self.step[rows] += 1
        stops = self.taken[rows] == self.total[rows]
        log_prob = torch.where(stops, chance, 1 - chance).log()
        self.place_log_prob = self.place_log_prob.index_add(0, rows, log_prob)
        return stops

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """The next insertion of each row."""
        mine = rows[able]
        self._require(self.taken[mine] < self.total[mine])
        edit = self.edits[mine, self.taken[mine]]
        position = text.position_ids[mine].gather(1, pairs.cells.column[able])
        is_left = position == (self.trace.position[edit] + text.target_start[mine] - 1).unsqueeze(1)
        fits = free & is_left & (self.trace.step[edit] == self.step[mine]).unsqueeze(1)
        self._require(fits.any(1))
        slot, token = fits.byte().argmax(1), self.trace.token[edit]
        every = torch.arange(len(able), device=able.device)
        self.followed.append(edit)
        self.log_probs.append(pairs.score(able, free, every, slot, token))
        self.taken[mine] += 1
        return slot, token

    def note_gap(self, rows: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Nothing is noted."""

    def _require(self, follows: Tensor) -> None:
        if not bool(follows.all()):
            raise ValueError("the trace is not one of this sampler: it inserts elsewhere, or stops elsewhere")
