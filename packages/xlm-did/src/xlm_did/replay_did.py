"""Where jumps and insertions come from: they are drawn, or those that write a given text are forced."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import draw_places
from xlm.modules.records import Targets
from xlm_did.clocks_did import Clock, Jump
from xlm_did.insertion_did import Pairs, Text
from xlm_did.types_did import DIDPromptBatch


class Insertions(Protocol):
    """Decides when tokens are inserted into rows, and which."""

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """The next insertions of each row.

        Args:
            rows: (rows,) rows of the batch.
            log_a: (rows, numbers) log A_n of each.
            log_time: (rows,) log of its time.
            uniforms: (rows, NUM_UNIFORMS) numbers in (0, 1).
        """
        ...

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """(rows, most) slots, as numbers among the row's open slots, and tokens, in the order of insertion.

        A token goes immediately right of the column of its slot, so left of those before it in the same slot.

        Args:
            text: All rows as they are now.
            rows: (rows,) rows of the batch that were evaluated.
            pairs: What the network says about them.
            number: (rows,) tokens that each gets; ``most`` is the largest number.
            uniforms: (rows, most, 2) numbers in (0, 1).
        """
        ...


@dataclass(frozen=True)
class Drawn:
    """Jumps and insertions are drawn, as generation does."""

    clock: Clock

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """A draw."""
        return self.clock.draw(log_a, log_time, uniforms)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """Independent draws of pairs."""
        slots, tokens = (number.new_zeros(uniforms.shape[:2]) for _ in range(2))
        for index in range(uniforms.shape[1]):
            able = (number > index).nonzero().squeeze(1)
            slots[able, index], tokens[able, index] = pairs.draw(able, uniforms[able, index])
        return slots, tokens


@dataclass
class Forced:
    """Inserts the tokens of a text at planned times, and weighs the plan.

    The times of the missing tokens are independent and uniform, those of the deletion process. The weight of
    a plan is the probability of what the sampler does in it, divided by the density of the times: its
    expectation is the probability of the text, summed over all orders and times, and for the first-hitting
    sampler the expectation of -log of it is the bound of :class:`xlm_did.DIDLoss`. No path is counted twice:
    what is inserted when determines which tokens of the text these are.
    """

    clock: Clock
    ids: Int[Tensor, "rows width"]
    exists: Bool[Tensor, "rows width"]
    present: Bool[Tensor, "rows width"]
    """True at tokens in the row."""
    times: Float64[Tensor, "rows width"]
    """When each token appears; read where it is missing."""
    log_weight: Float64[Tensor, " rows"]
    """Nats, so far."""
    due: Bool[Tensor, "rows width"] = field(init=False)
    """The tokens of the present jump."""
    num_missing: Int[Tensor, " rows"] = field(init=False)
    """Tokens to insert in all."""

    def __post_init__(self) -> None:
        self.due = torch.zeros_like(self.exists)
        self.num_missing = (self.exists & ~self.present).sum(1)

    @staticmethod
    def start(
        clock: Clock,
        batch: DIDPromptBatch,
        targets: Targets,
        times: Float64[Tensor, "rows width"],
        uniforms: Float64[Tensor, "rows given"],
    ) -> "Forced":
        """Nothing but the given tokens is in the rows.

        Where these fit to several places of the target, one fit is drawn, and its weight is their number.

        Args:
            clock: Of the sampler.
            batch: The given parts.
            targets: The texts, at least one column wide.
            times: In (0, 1), one per token.
            uniforms: Numbers in (0, 1), one per column of the batch.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        ids = targets.ids
        exists = torch.arange(ids.shape[1], device=ids.device) < targets.lengths.unsqueeze(1)
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
        return Forced(clock, ids, exists, present, times, log_weight.to(ids.device))

    def finish(self) -> Float64[Tensor, " rows"]:
        """The log-weights; -inf for a text that the row did not end with."""
        complete = (self.present | ~self.exists).all(1)
        return self.log_weight.masked_fill(~complete, -math.inf)

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """That of the plan; a row whose text has become impossible stops."""
        missing = self.exists[rows] & ~self.present[rows]
        planned = self.clock.follow(log_a, log_time, self.times[rows].where(missing, 0.0))
        self.log_weight[rows] += planned.log_weight
        possible = self.log_weight[rows] > -math.inf
        self.due[rows] = planned.due & possible.unsqueeze(1)
        jump = planned.jump
        return Jump(jump.number.masked_fill(~possible, 0), jump.log_time, jump.log_next)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """The tokens that are due and their slots, from right to left.

        The sampler draws m pairs in any order that gives the same text: m! divided by the c! orders of the c
        tokens of each slot. A token whose slot is closed has none, and its text is impossible.
        """
        due = self.due[rows]
        slot = self._slots(text, rows, pairs.cells.column, pairs.cells.exists, due)
        row, place = (due & (slot >= 0)).nonzero(as_tuple=True)
        token = self.ids[rows]
        log_probs = torch.zeros_like(self.times[rows]).masked_fill(due, -math.inf)
        log_probs[row, place] = pairs.score(row, slot[row, place], token[row, place])
        in_slot = torch.zeros_like(pairs.cells.column).index_put(
            (row, slot[row, place]), torch.ones_like(row), accumulate=True
        )
        log_orders = torch.lgamma(number.double() + 1) - torch.lgamma(in_slot.double() + 1).sum(1)
        self.log_weight[rows] += log_probs.sum(1) + log_orders
        self.present[rows] = self.present[rows] | due
        from_right = torch.where(due, torch.arange(due.shape[1], device=due.device), -1).argsort(
            1, descending=True
        )[:, : uniforms.shape[1]]
        return slot.gather(1, from_right).clamp(min=0), token.gather(1, from_right)

    def _slots(self, text: Text, rows: Tensor, columns: Tensor, exists: Tensor, due: Tensor) -> Tensor:
        """(rows, width) the slot in ``columns`` (rows, slots) of each token that is due; -1: none."""
        position, size = text.position_ids[rows], text.size[rows]
        used = torch.arange(position.shape[1], device=position.device) < size.unsqueeze(1)
        slot_at = torch.full((len(rows), int(position.max()) + 1), -1, device=position.device)
        position_of_slot = position.gather(1, columns)
        row, slot = (exists & used.gather(1, columns)).nonzero(as_tuple=True)
        slot_at[row, position_of_slot[row, slot]] = slot
        # Its slot is that of the last token on its left that is in the row.
        on_left = self.present[rows].cumsum(1) - self.present[rows].long()
        wanted = (text.target_start[rows].unsqueeze(1) - 1 + on_left).clamp(max=slot_at.shape[1] - 1)
        return slot_at.gather(1, wanted).masked_fill(~due, -1)
