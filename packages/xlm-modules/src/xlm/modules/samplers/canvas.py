"""Rows while they are written: the text of a batch, and a canvas on which a sampler works.

A text is shown to the network as a whole or through a window. A sampler decides which cells are written when;
the canvas implements how: it evaluates the network on the rows concerned only, computes logits at the cells
concerned only, asks the writer for tokens, counts and records.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypedDict

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules.cache import Columns, PromptCache
from xlm.modules.options import require
from xlm.modules.random import uniform
from xlm.modules.records import INSERT, WRITE, Trace, UserEdit, edits_of_step
from xlm.modules.samplers.ranks import STREAM_TOKENS
from xlm.modules.schedules import NoiseSchedule
from xlm.modules.writer import Writer


class PromptBatch(TypedDict):
    """The given part of each row and masks at the other cells."""

    input_ids: Int[Tensor, "rows length"]
    """Prompt, given target tokens, and MASK at the other cells."""
    attention_mask: Bool[Tensor, "rows length"]
    """False at the padding on the right."""
    masked: Bool[Tensor, "rows length"]
    """True at cells to fill."""
    may_end: Bool[Tensor, "rows length"]
    """True at cells where some tokens end the text."""
    target_start: Int[Tensor, " rows"]
    """First cell."""


class CellTokens(Protocol):
    """Which tokens a cell can hold, and which of them end a text."""

    def restrict(
        self, logits: Float[Tensor, "cells vocab"], may_end: Bool[Tensor, " cells"], /
    ) -> Float[Tensor, "cells vocab"]:
        """Logits with -inf at impossible tokens, in float32 at least."""
        ...

    def ends(self, ids: Tensor, /) -> Tensor:
        """True at ids that end a text where they may, of any shape."""
        ...


class Span(NamedTuple):
    """Cells that a window shows, counted from the first cell of each row."""

    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Some rows without some of their cells: everything left of the cells, then the cells of a span."""

    rows: Tensor
    """(rows,) the rows of the text that are in the window."""
    source: Tensor
    """(rows, length) column of the text that each column shows."""
    exists: Tensor
    """(rows, length) False at the padding on the right."""

    def show(self, table: Tensor) -> Tensor:
        """The part (rows, length) of a table of the text, all rows by all columns, that is shown."""
        return table[self.rows].gather(1, self.source)


@dataclass
class PlacedEdit:
    """An edit of the user in the rows and columns of a canvas."""

    edit: UserEdit
    turn: int
    row: int
    column: int | None
    """None: the canvas does not show its cell."""
    is_done: bool = False


@dataclass(frozen=True)
class Text:
    """All rows while they are written, (rows, length) each."""

    start_ids: Tensor
    """The rows as they were given."""
    input_ids: Tensor
    masked: Tensor
    may_end: Tensor
    cells: Tensor
    """True at cells."""
    target_start: Tensor
    """(rows,) first cell."""
    vocabulary: CellTokens

    @staticmethod
    def of(batch: PromptBatch, vocabulary: CellTokens) -> "Text":
        """The rows of a batch, which is not changed."""
        column = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
        return Text(
            start_ids=batch["input_ids"],
            input_ids=batch["input_ids"].clone(),
            masked=batch["masked"].clone(),
            may_end=batch["may_end"],
            cells=batch["attention_mask"] & (column >= batch["target_start"].unsqueeze(1)),
            target_start=batch["target_start"],
            vocabulary=vocabulary,
        )

    def spans(self, window_length: int | None, stride: int) -> list[Span]:
        """The windows that show every cell: the first one, and further ones ``stride`` cells apart."""
        most = int(self.cells.sum(1).amax()) if len(self.cells) > 0 else 0
        if window_length is None or most <= window_length:
            return [Span(0, most)]
        num_further = -(-(most - window_length) // stride)
        starts = range(0, num_further * stride + 1, stride)
        return [Span(start, start + window_length) for start in starts]

    def window(self, span: Span) -> Window:
        """The rows that have masks in a span and are not complete."""
        place = self._place()
        inside = self.cells & (place >= span.start) & (place < span.stop)
        rows = ((self.masked & inside).any(1) & ~self.is_complete()).nonzero().squeeze(1)
        target_start = self.target_start[rows].unsqueeze(1)
        size = target_start + inside[rows].sum(1, keepdim=True)
        column = torch.arange(int(size.max()) if len(rows) > 0 else 0, device=rows.device)
        source = column + torch.where(column < target_start, 0, span.start)
        exists = column < size
        return Window(rows=rows, source=source.where(exists, 0), exists=exists)

    def place(self, edit: UserEdit | None, window: Window, num_turns: int) -> PlacedEdit | None:
        """Where an edit is in a window, before which there were so many turns; None if it is in another."""
        if edit is None or edit.step <= num_turns or not bool((window.rows == edit.row).any()):
            return None
        row = int((window.rows == edit.row).nonzero()[0])
        shown = window.exists[row] & (window.source[row] == self.target_start[edit.row] + edit.position)
        column = int(shown.nonzero()[0]) if bool(shown.any()) else None
        return PlacedEdit(edit, edit.step - num_turns, row, column)

    def put(self, window: Window, input_ids: Tensor, masked: Tensor) -> None:
        """Take over the ids and masks (rows, length) of a window."""
        row = window.rows.unsqueeze(1).expand_as(window.source)[window.exists]
        column = window.source[window.exists]
        self.input_ids[row, column] = input_ids[window.exists]
        self.masked[row, column] = masked[window.exists]

    def targets(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """The texts (rows, width) up to their ends, padded on the right, and their lengths (rows,)."""
        text = self.cells & ~self._behind_end()
        lengths = text.sum(1)
        row, column = text.nonzero(as_tuple=True)
        ids = self.input_ids.new_full((len(lengths), int(lengths.max()) if len(lengths) > 0 else 0), pad_id)
        ids[row, column - self.target_start[row]] = self.input_ids[row, column]
        return ids, lengths

    def trace(self, edits: Sequence[Tensor], lengths: Tensor) -> Trace:
        """Insertions that build the start, then ``edits``, without those behind the end of the final text.

        Args:
            edits: Tables (5, edits) of :func:`xlm.modules.records.edits_of_step`, with columns of the text as
                positions.
            lengths: Lengths of the targets, (rows,).
        """
        row, column = (self.cells & (self._place() < lengths.unsqueeze(1))).nonzero(as_tuple=True)
        start = edits_of_step(0, INSERT, row, column, self.start_ids[row, column])
        step, row, operation, column, token = torch.cat([start, *edits], dim=1)
        position = column - self.target_start[row]
        inside = position < lengths[row]
        return Trace(*torch.stack([step, row, operation, position, token])[:, inside])

    def _place(self) -> Tensor:
        """(rows, length) number of each cell in its row."""
        column = torch.arange(self.cells.shape[1], device=self.cells.device)
        return column - self.target_start.unsqueeze(1)

    def _behind_end(self) -> Tensor:
        """(rows, length) True from the first cell on that ends the text."""
        ended = self.may_end & ~self.masked & self.vocabulary.ends(self.input_ids)
        return ended.cumsum(1) > 0

    def is_complete(self) -> Tensor:
        """(rows,) True at rows without masks left of their end."""
        return ~(self.masked & ~self._behind_end()).any(1)


Evaluate = Callable[..., Tensor]
"""Calls the network on ids and attention mask (rows, length) with alpha (rows,), the probability that a cell
is clean, and returns logits (cells, vocab) at positions (cells,) of the flattened rows. It gets what was
evaluated before as ``cache`` if there is anything."""


class RowStates(Protocol):
    """What was evaluated of each row before: :class:`xlm.modules.PromptCache`, or a family's own."""

    def of_rows(self, rows: Int[Tensor, " kept"], /) -> "RowStates":
        """That of the given rows, repeated if need be."""
        ...


@dataclass(frozen=True)
class Denoiser:
    """p_theta(x_0 | x_t) with what belongs to it."""

    evaluate: Evaluate
    vocabulary: CellTokens
    schedule: NoiseSchedule
    mask_id: int
    prompts: RowStates | None = None
    """States of the prompts, which are no columns of the text then (see :func:`read_prompts`): of all rows of
    a batch, in a canvas of its rows."""

    def of_rows(self, rows: Int[Tensor, " kept"]) -> "Denoiser":
        """The same for some rows of the batch."""
        return self if self.prompts is None else replace(self, prompts=self.prompts.of_rows(rows))


def read_prompts(
    evaluate: Evaluate, batch: PromptBatch, prompt: Bool[Tensor, "rows length"]
) -> tuple[PromptBatch, PromptCache]:
    """Evaluate prompts that do not see their targets, once for all steps.

    Args:
        evaluate: The network.
        batch: The rows.
        prompt: True at the columns of the prompts, which come first in their rows.

    Returns:
        The batch without these columns, and their states.
    """
    given, rest = Columns.of(prompt), Columns.of(batch["attention_mask"] & ~prompt)
    cache = PromptCache()
    real = None if bool(given.exists.all()) else given.exists
    clean = torch.ones(len(prompt), dtype=torch.float64, device=prompt.device)
    evaluate(given.take(batch["input_ids"]), real, clean, given.source.new_empty(0), cache=cache)
    cells: PromptBatch = {
        "input_ids": rest.take(batch["input_ids"]),
        "attention_mask": rest.exists,
        "masked": rest.take(batch["masked"]),
        "may_end": rest.take(batch["may_end"]),
        "target_start": torch.zeros_like(batch["target_start"]),
    }
    return cells, cache


@dataclass(frozen=True)
class Canvas:
    """Rows with masks, (rows, length) each unless noted; written in place.

    The token of a cell depends on its row's seed, the turn and the column, so that a row comes out the same
    beside any others.
    """

    denoiser: Denoiser
    writer: Writer
    window: Window
    """Where the rows and columns are in the batch."""
    input_ids: Int[Tensor, "rows length"]
    masked: Bool[Tensor, "rows length"]
    may_end: Bool[Tensor, "rows length"]
    seeds: Int[Tensor, " rows"]
    start: Bool[Tensor, "rows length"] = field(init=False)
    """The cells that were masked at the start."""
    nfe: Int[Tensor, " rows"] = field(init=False)
    """Evaluations of the network that each row took part in, as the rule is defined."""
    calls: Int[Tensor, " rows"] = field(init=False)
    """Calls of the network that each row took part in."""
    states: Int[Tensor, " rows"] = field(init=False)
    """Texts of each row in them."""
    edits: list[Tensor] = field(default_factory=list[Tensor])
    """Tables (5, edits) of turn, row, operation, column and token in the batch, in order."""
    user_edit: PlacedEdit | None = None
    """An edit of the user; its cell is not written again."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.masked.clone())
        for name in ("nfe", "calls", "states"):
            object.__setattr__(self, name, torch.zeros_like(self.seeds))

    def waiting(self) -> Bool[Tensor, " rows"]:
        """True at rows with a mask left of the end of their text; those without are complete."""
        ended = self.may_end & ~self.masked & self.denoiser.vocabulary.ends(self.input_ids)
        return (self.masked & (ended.cumsum(1) == 0)).any(1)

    def evaluate(
        self, row: Int[Tensor, " cells"], column: Int[Tensor, " cells"], alpha: Float64[Tensor, " rows"]
    ) -> Float[Tensor, "cells vocab"]:
        """Evaluate the network once on the rows of some cells.

        Args:
            row: Row of each cell; rows that do not occur are not evaluated.
            column: Column of each cell.
            alpha: Probability that a cell is clean, of every row.

        Returns:
            Logits of the cells, -inf at impossible tokens.
        """
        rows, index = torch.unique(row, return_inverse=True)
        logits = self.evaluate_states(self.input_ids[rows], rows, index, column, alpha[rows])
        self.nfe[rows] += 1
        return self.denoiser.vocabulary.restrict(logits, self.may_end[row, column])

    def evaluate_states(
        self,
        input_ids: Int[Tensor, "states length"],
        rows: Int[Tensor, " states"],
        state: Int[Tensor, " cells"],
        column: Int[Tensor, " cells"],
        alpha: Float64[Tensor, " states"],
    ) -> Float[Tensor, "cells vocab"]:
        """Evaluate the network once on texts of some rows, without counting it as an evaluation of the rule.

        Args:
            input_ids: The texts.
            rows: Their rows, which may repeat.
            state: Text of each cell.
            column: Its column.
            alpha: Probability that a cell is clean, of each text.

        Returns:
            Logits of the cells, of any token.
        """
        exists = self.window.exists[rows]
        width = int(exists.sum(1).max())
        prompts = self.denoiser.prompts
        logits = self.denoiser.evaluate(
            input_ids[:, :width],
            exists[:, :width],
            alpha,
            state * width + column,
            **({} if prompts is None else {"cache": prompts.of_rows(rows)}),
        )
        self.states.add_(torch.bincount(rows, minlength=len(self.states)))
        self.calls[rows] += 1
        return logits

    def draw(
        self,
        row: Int[Tensor, " cells"],
        column: Int[Tensor, " cells"],
        logits: Float[Tensor, "cells vocab"],
        turn: int,
    ) -> Int[Tensor, " cells"]:
        """The writer's tokens for some cells."""
        uniforms = uniform(self.seeds, self.input_ids.shape[1], step=turn, stream=STREAM_TOKENS)
        source = self.window.source[row, column]
        return self.writer.write(self.window.rows[row], source, logits, uniforms[row, column])

    def write(
        self,
        row: Int[Tensor, " cells"],
        column: Int[Tensor, " cells"],
        tokens: Int[Tensor, " cells"],
        turn: int,
    ) -> None:
        """Write tokens, MASK to mask cells again."""
        if (kept := self.user_edit) is not None and kept.is_done:
            others = (row != kept.row) | (column != kept.column)
            row, column, tokens = row[others], column[others], tokens[others]
        self.input_ids[row, column] = tokens
        self.masked[row, column] = tokens == self.denoiser.mask_id
        place = self.window.rows[row], self.window.source[row, column]
        self.edits.append(edits_of_step(turn, WRITE, *place, tokens))

    def edit(self, turn: int) -> None:
        """Write the token of the user behind its turn.

        Raises:
            ValueError: If the canvas does not show its cell, or the token is MASK.
        """
        placed = self.user_edit
        if placed is None or placed.is_done or turn < placed.turn:
            return
        step, position, token = placed.edit.step, placed.edit.position, placed.edit.token
        require(token != self.denoiser.mask_id, "token", token, "another one than MASK")
        if placed.column is None:
            raise ValueError(
                f"position {position} is not among the cells that the sampler sees in step {step}"
            )
        at = torch.tensor([[placed.row], [placed.column], [token]], device=self.input_ids.device)
        row, column, tokens = at
        self.write(row, column, tokens, turn)
        placed.is_done = True

    def remask(self, row: Int[Tensor, " cells"], column: Int[Tensor, " cells"], turn: int) -> None:
        """Mask written cells again."""
        self.write(row, column, torch.full_like(row, self.denoiser.mask_id), turn)
