"""The rows of a prediction, as a whole and through a window, and what comes of them: ids and the trace."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from xlm.modules.records import Trace
from xlm_mdlm.types_mdlm import MDLMPromptBatch
from xlm_mdlm.vocabulary_mdlm import CellVocabulary


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
    vocabulary: CellVocabulary

    @staticmethod
    def of(batch: MDLMPromptBatch, vocabulary: CellVocabulary) -> "Text":
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
        rows = ((self.masked & inside).any(1) & ~self._is_complete()).nonzero().squeeze(1)
        target_start = self.target_start[rows].unsqueeze(1)
        size = target_start + inside[rows].sum(1, keepdim=True)
        column = torch.arange(int(size.max()) if len(rows) > 0 else 0, device=rows.device)
        source = column + torch.where(column < target_start, 0, span.start)
        exists = column < size
        return Window(rows=rows, source=source.where(exists, 0), exists=exists)

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

    def trace(self, edits: list[Tensor], lengths: Tensor) -> Trace:
        """Insertions that build the start, then ``edits``: (4, edits) step, row, column and token each."""
        row, column = (self.cells & (self._place() < lengths.unsqueeze(1))).nonzero(as_tuple=True)
        given = torch.stack([torch.zeros_like(row), row, column, self.start_ids[row, column]])
        step, row, column, token = torch.cat([given, *edits], dim=1)
        position = column - self.target_start[row]
        inside = position < lengths[row]
        return Trace(
            step=step[inside],
            row=row[inside],
            operation=(step > 0).long()[inside],
            position=position[inside],
            token=token[inside],
        )

    def _place(self) -> Tensor:
        """(rows, length) number of each cell in its row."""
        column = torch.arange(self.cells.shape[1], device=self.cells.device)
        return column - self.target_start.unsqueeze(1)

    def _behind_end(self) -> Tensor:
        """(rows, length) True from the first cell on that ends the text."""
        ended = self.may_end & ~self.masked & self.vocabulary.ends(self.input_ids)
        return ended.cumsum(1) > 0

    def _is_complete(self) -> Tensor:
        """(rows,) True at rows without masks left of their end."""
        return ~(self.masked & ~self._behind_end()).any(1)
