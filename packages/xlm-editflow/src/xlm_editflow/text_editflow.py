"""The rows while they are edited, and the edits of a step."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.modules import Columns
from xlm.modules.records import DELETE, INSERT, WRITE, UserEdit, edits_of_step
from xlm_editflow.types_editflow import EditFlowPromptBatch

KEEP = -1
"""The operation of a column whose token stays."""


@dataclass(frozen=True)
class Edits:
    """The edits of some rows in one step, all read against the text before it."""

    operation: Int[Tensor, "rows length"]
    """KEEP, WRITE or DELETE: of the token of each column."""
    written: Int[Tensor, "rows length"]
    """The token that it is substituted by; read at WRITE."""
    number: Int[Tensor, "rows length"]
    """Tokens to insert into the slot of each column."""
    inserted: Int[Tensor, "rows length most"]
    """These, from left to right; read below ``number``."""

    @staticmethod
    def none(shape: torch.Size, most: int, device: torch.device) -> "Edits":
        """No edits, in tables to fill in."""
        return Edits(
            operation=torch.full(shape, KEEP, device=device),
            written=torch.zeros(shape, dtype=torch.int64, device=device),
            number=torch.zeros(shape, dtype=torch.int64, device=device),
            inserted=torch.zeros((*shape, most), dtype=torch.int64, device=device),
        )

    def in_order(self, own: Bool[Tensor, "rows length"]) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and index of some edits, from left to right.

        Args:
            own: Columns whose tokens have an edit to list: index 0. All insertions are listed, from index 1.
        """
        is_new = torch.arange(self.inserted.shape[2], device=own.device) < self.number.unsqueeze(2)
        row, column, index = torch.cat((own.unsqueeze(2), is_new), 2).nonzero(as_tuple=True)
        return row, column, index


@dataclass(frozen=True)
class Window:
    """Some rows."""

    input_ids: Int[Tensor, "rows length"]
    open_slots: Bool[Tensor, "rows length"]
    editable: Bool[Tensor, "rows length"]
    exists: Bool[Tensor, "rows length"]
    """True at columns in use."""


@dataclass
class Text:
    """Rows ``[BOS] target...``, packed to the left."""

    input_ids: Int[Tensor, "rows width"]
    open_slots: Bool[Tensor, "rows width"]
    editable: Bool[Tensor, "rows width"]
    size: Int[Tensor, " rows"]
    """Columns in use."""
    limit: Int[Tensor, " rows"]
    """The most target tokens."""
    stays: Bool[Tensor, "rows width"]
    """True at tokens of the user: their edits are drawn, so that the noise is the same, and not made."""

    @staticmethod
    def start(batch: EditFlowPromptBatch, max_new_tokens: int | None) -> "Text":
        """The rows of a batch without their prompts."""
        column = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
        target = batch["attention_mask"] & (column >= batch["target_start"].unsqueeze(1) - 1)
        columns = Columns.of(target)
        size = columns.exists.sum(1)
        limit = batch["limit"]
        input_ids = columns.take(batch["input_ids"])
        return Text(
            input_ids=input_ids,
            open_slots=columns.take(batch["open_slots"]),
            editable=columns.take(batch["editable"]),
            size=size,
            limit=limit if max_new_tokens is None else limit.minimum(size - 1 + max_new_tokens),
            stays=torch.zeros_like(input_ids, dtype=torch.bool),
        )

    def changeable(self, rows: Tensor) -> Tensor:
        """Those of the ``rows`` in which an edit is possible."""
        can_grow = (self.size[rows] - 1 < self.limit[rows]) & self.open_slots[rows].any(1)
        return rows[can_grow | self.editable[rows].any(1)]

    def room(self, rows: Tensor) -> Tensor:
        """(rows,) tokens that may be inserted."""
        return (self.limit[rows] - (self.size[rows] - 1)).clamp(min=0)

    def window(self, rows: Tensor, width: int | None = None) -> Window:
        """The rows, at least one; as wide as the longest of them or with a given number of columns."""
        size = self.size[rows]
        width = int(size.max()) if width is None else width
        tables = (self.input_ids, self.open_slots, self.editable)
        exists = torch.arange(width, device=size.device) < size.unsqueeze(1)
        input_ids, open_slots, editable = (table[rows, :width] for table in tables)
        return Window(input_ids, open_slots, editable, exists)

    def apply(self, rows: Tensor, edits: Edits, step: int) -> Tensor:
        """Make the edits of a step in the ``rows``, and return them as a table of edits.

        They are listed from left to right, each position valid for the text at that moment.
        """
        length = edits.operation.shape[1]
        window = self.window(rows, length)
        old, stays = window.input_ids, self.stays[rows, :length]
        operation = edits.operation.masked_fill(stays, KEEP)
        is_written, is_deleted = operation == WRITE, operation == DELETE
        kept = window.exists & ~is_deleted
        count = kept.long() + edits.number
        start = count.cumsum(1) - count
        size = count.sum(1)
        width = max(int(size.max()), self.input_ids.shape[1])
        order = torch.arange(edits.inserted.shape[2], device=old.device)
        is_new = order < edits.number.unsqueeze(2)
        place_of_new = (start + kept).unsqueeze(2) + order

        tables = (self.input_ids, self.open_slots, self.editable, self.stays)
        values = (edits.written.where(is_written, old), window.open_slots, window.editable, stays)
        yes = torch.ones_like(is_new)
        new_values = (edits.inserted, yes, yes, torch.zeros_like(is_new))
        moved: list[Tensor] = []
        for table, value, new in zip(tables, values, new_values, strict=True):
            wide = table.new_zeros(len(self.size), width)
            wide[:, : table.shape[1]] = table
            # What is gone is written into one more column, which is then cut off.
            packed = table.new_zeros(len(rows), width + 1)
            packed.scatter_(1, start.where(kept, width), value)
            packed.scatter_(1, place_of_new.where(is_new, width).flatten(1), new.flatten(1))
            wide[rows] = packed[:, :width]
            moved.append(wide)
        self.input_ids, self.open_slots, self.editable, self.stays = moved
        self.size = self.size.index_copy(0, rows, size)

        row, column, index = edits.in_order(operation != KEEP)
        kinds = torch.cat((operation.unsqueeze(2), torch.full_like(edits.inserted, INSERT)), 2)
        places = torch.cat((start.unsqueeze(2), place_of_new), 2) - 1
        tokens = torch.cat((edits.written.where(is_written, old).unsqueeze(2), edits.inserted), 2)
        at = row, column, index
        return torch.stack((torch.full_like(row, step), rows[row], kinds[at], places[at], tokens[at]))

    def write(self, edit: UserEdit) -> Tensor:
        """Write a token of the user over another one, and return the edit (5, 1).

        Raises:
            ValueError: If the target has no such position.
        """
        column = edit.position + 1
        if not 1 <= column < int(self.size[edit.row]):
            raise ValueError(f"the text has no position {edit.position} in step {edit.step}")
        self.input_ids[edit.row, column] = edit.token
        self.stays[edit.row, column] = True
        row, place, token = torch.tensor([[edit.row], [edit.position], [edit.token]], device=self.size.device)
        return edits_of_step(edit.step, WRITE, row, place, token)

    def targets(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """Target tokens, padded (rows, width), and their number (rows,)."""
        lengths = self.size - 1
        width = int(lengths.max()) if len(lengths) > 0 else 0
        ids = self.input_ids[:, 1 : 1 + width]
        return ids.where(torch.arange(width, device=ids.device) < lengths.unsqueeze(1), pad_id), lengths

    def given_edits(self) -> Tensor:
        """Insertions that build the given targets, from left to right."""
        used = torch.arange(1, self.input_ids.shape[1], device=self.size.device) < self.size.unsqueeze(1)
        row, place = used.nonzero(as_tuple=True)
        return edits_of_step(0, INSERT, row, place, self.input_ids[row, place + 1])
