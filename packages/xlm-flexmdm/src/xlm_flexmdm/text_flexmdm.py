"""The rows while they are generated: masks come in between, and what stands right of them moves on."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules.records import INSERT, WRITE, edits_of_step
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


def fit_to_budget(
    counts: Int[Tensor, "rows length"], budget: Int[Tensor, " rows"], keys: Float64[Tensor, "rows length"]
) -> Int[Tensor, "rows length"]:
    """Cut insertions so that no row exceeds its budget.

    Slots are served in the order of random keys until the budget is used up; the slot at which that happens
    gets the part that fits. So no side of the text is preferred, and what fits is never dropped.

    Args:
        counts: Tokens to insert into each slot, shape (rows, length).
        budget: Tokens that each row can take, at least 0, shape (rows,).
        keys: Random numbers, shape (rows, length).

    Returns:
        Tokens to insert, at most ``counts`` and in sum at most ``budget``, shape (rows, length).
    """
    order = keys.argsort(dim=1, stable=True)
    served = counts.gather(1, order)
    before = served.cumsum(1) - served
    fitting = served.minimum((budget.unsqueeze(1) - before).clamp(min=0))
    return torch.zeros_like(counts).scatter(1, order, fitting)


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
    def growing(self) -> Bool[Tensor, " rows"]:
        """True at rows that can take another token."""
        return (self.budget > 0) & self.open_slots.any(1)

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of some rows, as wide as the longest of them."""
        size = self.size[rows]
        width = int(size.max())
        return self.input_ids[rows, :width], torch.arange(width, device=size.device) < size.unsqueeze(1)

    def write(self, row: Tensor, column: Tensor, token: Tensor, step: int) -> Tensor:
        """Replace the token at some columns, and return the edits."""
        self.input_ids[row, column] = token
        return edits_of_step(step, WRITE, row, column - self.target_start[row], token)

    def insert(self, counts: Int[Tensor, "rows length"], step: int) -> Tensor:
        """Insert that many MASKs right of each column, and return the edits."""
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
        return edits_of_step(step, INSERT, row, column - self.target_start[row], token)

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
