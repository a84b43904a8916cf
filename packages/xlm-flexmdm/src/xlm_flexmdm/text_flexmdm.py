"""The rows while they are generated: masks come in between, and what stands right of them moves on."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import require
from xlm.modules.records import INSERT, WRITE, UserEdit, edits_of_step
from xlm_flexmdm.types_flexmdm import FlexMDMPromptBatch


def poisson(
    means: Float64[Tensor, " slots"], uniforms: Float64[Tensor, " slots"], limits: Int[Tensor, " slots"]
) -> Int[Tensor, " slots"]:
    """Poisson numbers by inverting the cumulative distribution, one uniform each, cut at a limit.

    The number is the smallest k with P(N <= k) > u. Above the limit it is of no interest, which bounds the
    search.

    Args:
        means: Means, at least 0 and finite, shape (slots,).
        uniforms: Numbers in (0, 1), shape (slots,).
        limits: Largest number of interest, at least 0, shape (slots,).

    Returns:
        min(N, limit), shape (slots,).
    """
    numbers = torch.zeros_like(limits)
    # In logarithms: exp(-mean) underflows for a mean above 745.
    log_means = means.log()
    log_mass = -means
    cumulative = log_mass.exp()
    searching = (uniforms >= cumulative) & (limits > 0)
    number = 0
    while bool(searching.any()):
        number += 1
        numbers += searching
        log_mass = log_mass + log_means - math.log(number)
        cumulative = cumulative + log_mass.exp()
        searching = searching & (uniforms >= cumulative) & (limits > number)
    return numbers


def insertions(
    gaps: Float64[Tensor, "rows length"],
    arrivals: Int[Tensor, " rows"],
    budget: Int[Tensor, " rows"],
    uniforms: Float64[Tensor, "rows most"],
) -> Int[Tensor, "rows length"]:
    """Distribute masks that arrive at the rate of a row's budget, by thinning (Lewis and Shedler 1979).

    An arrival goes into slot i with probability g_i / max(budget, sum of all g), and otherwise nowhere. If
    the arrivals of a row are Poisson with mean f budget, the numbers of its slots are independent and
    Poisson with means f g_i, as long as the sum of all g is at most the budget; a larger sum, which cannot
    be missing, is scaled down to it. Arrivals beyond the budget are dropped.

    Args:
        gaps: g of each slot, 0 where it is closed, shape (rows, length).
        arrivals: Arrivals of each row, shape (rows,).
        budget: Tokens that each row can take, at least 0, shape (rows,).
        uniforms: Numbers in (0, 1), one for each arrival, shape (rows, most arrivals of a row).

    Returns:
        Tokens to insert, in sum at most ``budget``, shape (rows, length).
    """
    upto = gaps.cumsum(1)
    rate = upto[:, -1:].maximum(budget.unsqueeze(1))
    slot = torch.searchsorted(upto, uniforms * rate, right=True)
    fitting = slot < gaps.shape[1]
    fitting &= torch.arange(slot.shape[1], device=slot.device) < arrivals.unsqueeze(1)
    fitting &= fitting.cumsum(1) <= budget.unsqueeze(1)
    counts = torch.zeros(len(gaps), gaps.shape[1] + 1, dtype=torch.int64, device=gaps.device)
    return counts.scatter_add(1, slot, fitting.long())[:, :-1]


@dataclass
class Text:
    """Rows in the order of the text, shape (rows, length) unless noted."""

    input_ids: Tensor
    """Padding beyond ``size``."""
    open_slots: Tensor
    """False beyond ``size``. It belongs to the token and moves with it."""
    size: Tensor
    """(rows,) columns in use."""
    budget: Tensor
    """(rows,) tokens that may still be inserted."""
    target_start: Tensor
    """(rows,) first column right of BOS."""
    mask_id: int
    pad_id: int

    @staticmethod
    def start(batch: FlexMDMPromptBatch, *, mask_id: int, pad_id: int, max_new_tokens: int | None) -> "Text":
        """The given part of each row."""
        budget = batch["budget"] if max_new_tokens is None else batch["budget"].clamp(max=max_new_tokens)
        return Text(
            input_ids=batch["input_ids"].clone(),
            open_slots=batch["open_slots"].clone(),
            size=batch["attention_mask"].sum(1),
            budget=budget.clone(),
            target_start=batch["target_start"],
            mask_id=mask_id,
            pad_id=pad_id,
        )

    @property
    def masked(self) -> Bool[Tensor, "rows length"]:
        """True at masked tokens."""
        return self.input_ids == self.mask_id

    @property
    def most_missing(self) -> Int[Tensor, " rows"]:
        """Tokens that can be missing: the budget, or 0 without an open slot."""
        return self.budget * self.open_slots.any(1)

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of some rows, as wide as the longest of them."""
        size = self.size[rows]
        width = int(size.max())
        return self.input_ids[rows, :width], torch.arange(width, device=size.device) < size.unsqueeze(1)

    def write(self, row: Tensor, column: Tensor, token: Tensor, step: Int[Tensor, " edits"]) -> Tensor:
        """Replace the token at some columns, and return the edits."""
        self.input_ids[row, column] = token
        return edits_of_step(step, WRITE, row, column - self.target_start[row], token)

    def edit(self, edit: UserEdit) -> Tensor:
        """Write a token of the user over another one or a mask, and return the edit (5, 1).

        Raises:
            ValueError: If the target has no such position, or the token is MASK.
        """
        require(edit.token != self.mask_id, "token", edit.token, "another one than MASK")
        start, size = int(self.target_start[edit.row]), int(self.size[edit.row])
        if not 0 <= edit.position < size - start:
            raise ValueError(f"the text has no position {edit.position} in step {edit.step}")
        place = torch.tensor([[edit.row], [start + edit.position], [edit.token]], device=self.size.device)
        row, column, token = place
        return self.write(row, column, token, torch.full_like(row, edit.step))

    def insert(self, counts: Int[Tensor, "rows length"], step: Int[Tensor, " rows"]) -> Tensor:
        """Insert that many MASKs right of each column in the step of each row, and return the edits."""
        added = counts.sum(1)
        size = self.size + added
        width = max(int(size.max()), 1)
        columns = torch.arange(width, device=size.device)
        exists = columns < size.unsqueeze(1)
        # A token moves on by what is inserted on its left; padding into a column that is cut off.
        old = torch.arange(counts.shape[1], device=size.device)
        moved = old + counts.cumsum(1) - counts
        place = moved.where(old < self.size.unsqueeze(1), width)

        ids = torch.full((len(size), width + 1), self.mask_id, device=size.device)
        ids = ids.scatter(1, place, self.input_ids)[:, :width]
        # A slot next to an inserted token is open, as the one it was inserted into.
        open_slots = torch.ones(len(size), width + 1, dtype=torch.bool, device=size.device)
        open_slots = open_slots.scatter(1, place, self.open_slots)[:, :width]
        inserted = torch.ones_like(open_slots, dtype=torch.bool)
        inserted = torch.cat((inserted, inserted[:, :1]), dim=1).scatter(1, place, value=False)[:, :width]

        self.input_ids = ids.masked_fill(~exists, self.pad_id)
        self.open_slots = open_slots & exists
        self.size = size
        self.budget = self.budget - added
        row, column = (inserted & exists).nonzero(as_tuple=True)
        # From left to right: what stands left of a gap has come before.
        token = torch.full_like(row, self.mask_id)
        return edits_of_step(step[row], INSERT, row, column - self.target_start[row], token)

    def targets(self) -> tuple[Tensor, Tensor]:
        """Target tokens, padded (rows, width), and their number (rows,)."""
        lengths = self.size - self.target_start
        width = int(lengths.max()) if len(lengths) > 0 else 0
        place = torch.arange(width, device=lengths.device)
        exists = place < lengths.unsqueeze(1)
        column = (self.target_start.unsqueeze(1) + place).where(exists, 0)
        return self.input_ids.gather(1, column).masked_fill(~exists, self.pad_id), lengths

    def given_edits(self) -> Tensor:
        """Insertions that build the given targets, from left to right."""
        columns = torch.arange(self.input_ids.shape[1], device=self.size.device)
        given = (columns >= self.target_start.unsqueeze(1)) & (columns < self.size.unsqueeze(1))
        row, column = given.nonzero(as_tuple=True)
        return edits_of_step(0, INSERT, row, column - self.target_start[row], self.input_ids[row, column])
