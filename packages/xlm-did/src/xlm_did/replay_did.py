"""Where jumps and insertions come from: they are drawn, also with notes, or a given text is forced."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import draw_places
from xlm.modules.records import INSERT, Targets, edits_of_step
from xlm_did.clocks_did import Clock, Jump
from xlm_did.insertion_did import Pairs, Text
from xlm_did.missing_did import log_numbers
from xlm_did.types_did import DIDPromptBatch

Uniforms = Callable[[int], Float64[Tensor, "rows numbers"]]


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
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, most) slots, as numbers among the row's open slots, and tokens; (rows,) how many of them.

        A token goes immediately right of the column of its slot, so left of those before it in the same slot.

        Args:
            text: All rows as they are now.
            rows: (rows,) rows of the batch that were evaluated.
            pairs: What the network says about them.
            number: (rows,) tokens that each gets, or fewer of them in this evaluation.
            most: The largest number.
            uniforms: So many numbers in (0, 1) for each row, (rows, numbers).
        """
        ...


def insert(
    insertions: Insertions,
    text: Text,
    rows: Tensor,
    pairs: Pairs,
    number: Tensor,
    step: int,
    uniforms: Uniforms,
) -> tuple[list[Tensor], Tensor]:
    """Insert this many tokens or fewer into each row; return the edits, and how many they are (rows,)."""
    most = int(number.max())
    slots, tokens, inserted = insertions.choose(text, rows, pairs, number, most, uniforms)
    edits: list[Tensor] = []
    for index in range(int(inserted.max())):
        able = (inserted > index).nonzero().squeeze(1)
        slot, token = slots[able, index], tokens[able, index]
        gap = text.insert(rows[able], pairs.cells.column[able, slot], token)
        edits.append(edits_of_step(step, INSERT, rows[able], gap, token))
    return edits, inserted


@dataclass
class Turn:
    """Chooses the time at which the tokens of some rows are read, from what the length head gives."""

    insertions: Insertions
    rows: Tensor
    num_kept: Tensor
    """(rows,) tokens that are not given."""
    budget: Tensor
    """(rows,) the most tokens that may be missing."""
    log_time: Tensor
    uniforms: Tensor
    jump: Jump = field(init=False)

    def __call__(self, length_logits: Tensor) -> Tensor:
        """(rows,) the time."""
        log_a = log_numbers(length_logits, self.num_kept, self.budget)
        self.jump = self.insertions.jump(self.rows, log_a, self.log_time, self.uniforms)
        return self.jump.log_time.exp()


@dataclass(frozen=True)
class Drawn:
    """Jumps and insertions are drawn, as generation does."""

    clock: Clock

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """A draw."""
        return self.clock.draw(log_a, log_time, uniforms)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Independent draws of pairs."""
        return *pairs.draw_many(number, most, uniforms), number


@dataclass
class Recorded:
    """Draws jumps and insertions, and notes their log-probabilities."""

    clock: Clock
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of the jumps, so far; of the density of the times of :class:`xlm_did.clocks_did.FirstHitting`."""
    log_probs: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the pairs of slot and token, in the order of the edits."""
    entropies: list[Tensor] = field(default_factory=list[Tensor])
    """Nats of the distributions of the pairs."""

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """A draw."""
        jump = self.clock.draw(log_a, log_time, uniforms)
        self.place_log_prob[rows] += self.clock.log_prob(log_a, log_time, jump)
        return jump

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Independent draws of pairs."""
        slots, tokens = pairs.draw_many(number, most, uniforms)
        self.note(rows, pairs, slots, tokens, number)
        return slots, tokens, number

    def note(self, rows: Tensor, pairs: Pairs, slots: Tensor, tokens: Tensor, number: Tensor) -> None:
        """Note the first ``number`` pairs of each row."""
        entropies = pairs.entropies()
        for index in range(slots.shape[1]):
            able = (number > index).nonzero().squeeze(1)
            self.log_probs.append(pairs.score(able, slots[able, index], tokens[able, index]))
            self.entropies.append(entropies[able])


@dataclass
class Forced:
    """Inserts the tokens of a text at times and in an order of their own, and weighs these.

    They are proposed in two ways. Planned times are independent and uniform, those of the deletion process,
    which a network that has learnt its data follows. Guided ones are drawn by the sampler's clock, and of the
    missing tokens j one after another with probability a_j / A, where a_j is the sampler's probability of
    inserting j into its slot and A the sum of these: what an unlearnt network does, whose sampler may spend
    its time where uniform times hardly ever are.

    The weight is the probability of what the sampler does, divided by that of the proposals, the mean over
    both with the shares that each has among the draws (the balance heuristic of Veach and Guibas 1995). The
    mean weight of all draws has the expectation p(text), summed over all orders and times: what is inserted
    when determines which tokens of the text these are, with equal tokens too. With planned times alone the
    expectation of -log of the weight is the bound of :class:`xlm_did.DIDLoss` for the first-hitting sampler;
    with guided ones the weight is at most 1 divided by their share, since without the others it is a product
    of probabilities.
    """

    clock: Clock
    ids: Int[Tensor, "rows width"]
    exists: Bool[Tensor, "rows width"]
    present: Bool[Tensor, "rows width"]
    """True at tokens in the row."""
    times: Float64[Tensor, "rows width"] | None
    """When each token appears, read where it is missing; None: guided."""
    guided_share: float
    """Of guided draws among all."""
    drawn: Float64[Tensor, " rows"]
    """Nats, so far, with which the sampler does the same."""
    guided: Float64[Tensor, " rows"] = field(init=False)
    """Nats of guided draws."""
    planned: Float64[Tensor, " rows"] = field(init=False)
    """Nats of planned draws."""
    num_missing: Int[Tensor, " rows"] = field(init=False)
    """Tokens to insert in all."""

    def __post_init__(self) -> None:
        self.guided, self.planned = torch.zeros_like(self.drawn), torch.zeros_like(self.drawn)
        self.num_missing = (self.exists & ~self.present).sum(1)

    @staticmethod
    def start(
        clock: Clock,
        batch: DIDPromptBatch,
        targets: Targets,
        uniforms: Float64[Tensor, "rows given"],
        times: Float64[Tensor, "rows width"] | None,
        guided_share: float = 0.0,
    ) -> "Forced":
        """Nothing but the given tokens is in the rows.

        Where these fit to several places of the target, one fit is drawn, and its weight is their number.

        Args:
            clock: Of the sampler.
            batch: The given parts.
            targets: The texts, at least one column wide.
            uniforms: Numbers in (0, 1), one per column of the batch.
            times: In (0, 1), one per token, for a planned draw; None for a guided one.
            guided_share: Share of guided draws among all; above 0 for a guided one.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        ids = targets.ids
        exists = torch.arange(ids.shape[1], device=ids.device) < targets.lengths.unsqueeze(1)
        present, drawn = torch.zeros_like(exists), torch.zeros(len(ids), dtype=torch.float64)
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
            drawn[row] = math.log(number)
        return Forced(clock, ids, exists, present, times, guided_share, drawn.to(ids.device))

    def finish(self) -> Float64[Tensor, " rows"]:
        """The log-weights; -inf for a text that the row did not end with."""
        complete = (self.present | ~self.exists).all(1)
        shares = torch.tensor([1 - self.guided_share, self.guided_share], dtype=torch.float64).log()
        proposed = torch.stack([self.planned, self.guided], 1) + shares.to(self.drawn.device)
        return (self.drawn - proposed.logsumexp(1)).masked_fill(~complete | ~self._possible(), -math.inf)

    def jump(self, rows: Tensor, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """One that leads to the text; a row whose text has become impossible stops."""
        is_missing = self.exists[rows] & ~self.present[rows]
        missing = is_missing.sum(1)
        if self.times is None:
            jump = self.clock.guide(log_a, log_time, missing, uniforms)
        else:
            jump = self.clock.plan(self.times[rows].where(is_missing, 0.0))
        odds = self.clock.weigh(log_a, log_time, missing, jump)
        self.drawn[rows] += odds.drawn
        self.guided[rows] += odds.guided
        self.planned[rows] += odds.planned
        return Jump(jump.number.masked_fill(~self._possible()[rows], 0), jump.log_time, jump.log_next)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, number: Tensor, most: int, uniforms: Uniforms, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Missing tokens and their slots, from right to left; without one, anything: the text is impossible.

        The sampler draws m pairs in any order that gives the same text: m! divided by the c! orders of the c
        tokens of each slot. Here the m! orders are those in which the tokens are chosen.
        """
        slot = self._slots(text, rows, pairs.cells.column, pairs.cells.exists)
        row, place = (slot >= 0).nonzero(as_tuple=True)
        token = self.ids[rows]
        log_probs = torch.full(slot.shape, -math.inf, dtype=torch.float64, device=slot.device)
        log_probs[row, place] = pairs.score(row, slot[row, place], token[row, place])
        if self.times is None:
            # Gumbel noise, without replacement: each has the probability a_j / A among those that are left.
            noise = -(-uniforms(slot.shape[1]).log()).log()
            order = (log_probs + noise).argsort(1, descending=True)
        else:
            order = self._by_time(rows)
        chosen = torch.arange(slot.shape[1], device=slot.device) < number.unsqueeze(1)
        nats = log_probs.gather(1, order)
        left = nats.flip(1).logcumsumexp(1).flip(1)
        self.drawn[rows] += nats.where(chosen, 0.0).sum(1)
        self.guided[rows] += (nats - left).where(chosen, 0.0).sum(1)
        due = torch.zeros_like(chosen).scatter(1, order, chosen & (nats > -math.inf))
        row, place = due.nonzero(as_tuple=True)
        in_slot = torch.zeros_like(pairs.cells.column)
        in_slot.index_put_((row, slot[row, place]), torch.ones_like(row), accumulate=True)
        self.drawn[rows] -= torch.lgamma(in_slot.double() + 1).sum(1)
        self.present[rows] = self.present[rows] | due
        from_right = torch.where(due, torch.arange(due.shape[1], device=due.device), -1).argsort(
            1, descending=True
        )[:, :most]
        return slot.gather(1, from_right).clamp(min=0), token.gather(1, from_right), number

    def _by_time(self, rows: Tensor) -> Tensor:
        """(rows, width) missing tokens in the order of their times."""
        assert self.times is not None
        is_missing = self.exists[rows] & ~self.present[rows]
        return self.times[rows].where(is_missing, 0.0).argsort(1, descending=True)

    def _possible(self) -> Tensor:
        """(rows,) whether the sampler may do what was done."""
        return self.drawn > -math.inf

    def _slots(self, text: Text, rows: Tensor, columns: Tensor, exists: Tensor) -> Tensor:
        """(rows, width) the slot in ``columns`` (rows, slots) of each missing token; -1: none."""
        position, size = text.position_ids[rows], text.size[rows]
        used = torch.arange(position.shape[1], device=position.device) < size.unsqueeze(1)
        slot_at = torch.full((len(rows), int(position.max()) + 1), -1, device=position.device)
        position_of_slot = position.gather(1, columns)
        row, slot = (exists & used.gather(1, columns)).nonzero(as_tuple=True)
        slot_at[row, position_of_slot[row, slot]] = slot
        # Its slot is that of the last token on its left that is in the row.
        on_left = self.present[rows].cumsum(1) - self.present[rows].long()
        wanted = (text.target_start[rows].unsqueeze(1) - 1 + on_left).clamp(max=slot_at.shape[1] - 1)
        is_missing = self.exists[rows] & ~self.present[rows]
        return slot_at.gather(1, wanted).masked_fill(~is_missing, -1)
