"""What happens in a step: drawn from the rates, or the edits that write a given text."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xlm.modules import TokenSampling, suppress_tokens, uniform
from xlm.modules.records import DELETE, WRITE
from xlm_editflow.rates_editflow import INSERTION, SUBSTITUTION, Rates
from xlm_editflow.text_editflow import Edits
from xlm_editflow.types_editflow import NUM_OPERATIONS

_STREAM_EDIT = 0
_STREAM_NUMBER = 1
_STREAM_SUBSTITUTE = 2
_STREAM_ACTION = 3
_STREAM_CORRECTION = 4
STREAM_INSERT = 32
"""And the numbers after it: one for each further token of a slot."""


@dataclass(frozen=True)
class Cells:
    """The places of some rows in which tokens may be written."""

    open_slots: Tensor
    """(rows, length)"""
    editable: Tensor
    """(rows, length)"""
    of_slot: Tensor
    """(rows, length) number of the cell of each open slot."""
    of_token: Tensor
    """(rows, length) number of the cell of each editable token."""

    @staticmethod
    def of(open_slots: Tensor, editable: Tensor) -> "Cells":
        """The cells that two tables mark, numbered row by row, slots first."""
        number = open_slots.flatten().cumsum(0).view_as(open_slots) - 1
        others = open_slots.sum() + editable.flatten().cumsum(0).view_as(editable) - 1
        return Cells(open_slots, editable, number, others)


@dataclass(frozen=True)
class Scored:
    """The cells, read out."""

    hidden: Tensor
    """(cells, d_model), or logits with the identity as the head."""
    head: nn.Module


@dataclass(frozen=True)
class Evaluation:
    """What the network gives for some rows at their times."""

    input_ids: Tensor
    """(rows, length)"""
    cells: Cells
    scored: Scored
    rates: Rates
    room: Tensor
    """(rows,) the most tokens to insert."""
    sampling: TokenSampling
    suppressed_ids: list[int]

    def of_rows(self, kept: Tensor) -> "Evaluation":
        """That of some of its rows; the cells keep their numbers."""
        cells, rates = self.cells, self.rates
        return replace(
            self,
            input_ids=self.input_ids[kept],
            cells=Cells(
                cells.open_slots[kept], cells.editable[kept], cells.of_slot[kept], cells.of_token[kept]
            ),
            rates=Rates(rates.log_insert[kept], rates.log_delete[kept], rates.log_substitute[kept]),
            room=self.room[kept],
        )

    def log_rates(self) -> Tensor:
        """(rows, length, 3) of what may happen; without insertions where there is no room."""
        open_slots = self.cells.open_slots & (self.room > 0).unsqueeze(1)
        return self.rates.table(open_slots, self.cells.editable)

    def insertion_logits(self, row: Tensor, column: Tensor) -> Tensor:
        """(cells, vocab) of tokens into slots."""
        logits = self.scored.head(self.scored.hidden[self.cells.of_slot[row, column]])
        return suppress_tokens(logits, self.suppressed_ids)

    def substitution_logits(self, row: Tensor, column: Tensor) -> Tensor:
        """(cells, vocab) of tokens that substitute others; a token is not substituted by itself."""
        logits = self.scored.head(self.scored.hidden[self.cells.of_token[row, column]])
        own = self.input_ids[row, column].unsqueeze(1)
        return suppress_tokens(logits, self.suppressed_ids).scatter(1, own, -math.inf)


def draw_step(evaluation: Evaluation, chance: Tensor, seeds: Tensor, step: int, *, is_poisson: bool) -> Edits:
    """The edits of a step in which each pending one is made with a probability (rows,).

    A token is deleted or substituted with the probability times the rate. Of a slot, the number of insertions
    is Poisson distributed with that mean, or one with that probability, at most 1. Beyond the room of the row
    insertions are dropped, from the right.
    """
    cells = evaluation.cells
    rows, length = cells.editable.shape
    level = uniform(seeds, length, step=step, stream=_STREAM_EDIT)
    deleted, edited = evaluation.rates.log_delete.exp(), evaluation.rates.edited()
    level, chance = level / chance.unsqueeze(1), chance.unsqueeze(1)
    is_deleted = cells.editable & (level < deleted)
    is_written = cells.editable & (level < edited) & ~is_deleted
    mean = chance * torch.where(cells.open_slots, evaluation.rates.log_insert.exp(), 0.0)
    level = uniform(seeds, length, step=step, stream=_STREAM_NUMBER)
    number = poisson(mean, level) if is_poisson else (level < mean).long()
    until = number.cumsum(1).minimum(evaluation.room.unsqueeze(1))
    number = until.diff(dim=1, prepend=until.new_zeros(rows, 1))

    edits = Edits.none(is_deleted.shape, max(int(number.max()), 1), is_deleted.device)
    edits.operation[is_deleted] = DELETE
    edits.operation[is_written] = WRITE
    edits.number.copy_(number)
    row, column = is_written.nonzero(as_tuple=True)
    numbers = uniform(seeds, length, step=step, stream=_STREAM_SUBSTITUTE)[row, column]
    edits.written[row, column] = draw_tokens(evaluation, row, column, numbers, is_insertion=False)
    for index in range(edits.inserted.shape[2]):
        row, column = (number > index).nonzero(as_tuple=True)
        numbers = uniform(seeds, length, step=step, stream=STREAM_INSERT + index)[row, column]
        edits.inserted[row, column, index] = draw_tokens(evaluation, row, column, numbers, is_insertion=True)
    return edits


def draw_one(evaluation: Evaluation, seeds: Tensor, step: int) -> Edits:
    """One edit of each row, with probabilities proportional to the rates."""
    log_rates = evaluation.log_rates()
    length = log_rates.shape[1]
    numbers = uniform(seeds, 2, step=step, stream=_STREAM_ACTION)
    action = TokenSampling().draw(log_rates.flatten(1), numbers[:, 0])
    column, operation = action // NUM_OPERATIONS, action % NUM_OPERATIONS
    edits = Edits.none(torch.Size((len(action), length)), 1, action.device)
    for kind in range(NUM_OPERATIONS):
        row = (operation == kind).nonzero().squeeze(1)
        at = row, column[row]
        if kind == INSERTION:
            edits.number[at] = 1
            edits.inserted[(*at, torch.zeros_like(row))] = draw_tokens(
                evaluation, *at, numbers[row, 1], is_insertion=True
            )
        elif kind == SUBSTITUTION:
            edits.operation[at] = WRITE
            edits.written[at] = draw_tokens(evaluation, *at, numbers[row, 1], is_insertion=False)
        else:
            edits.operation[at] = DELETE
    return edits


def draw_reverse(editable: Tensor, chance: Tensor, seeds: Tensor, step: int) -> Edits:
    """Reverse moves towards an empty source: each token is deleted with a probability (rows,)."""
    level = uniform(seeds, editable.shape[1], step=step, stream=_STREAM_CORRECTION)
    edits = Edits.none(editable.shape, 1, editable.device)
    edits.operation[editable & (level < chance.unsqueeze(1))] = DELETE
    return edits


def draw_tokens(
    evaluation: Evaluation, row: Tensor, column: Tensor, numbers: Tensor, *, is_insertion: bool
) -> Tensor:
    """Tokens of some cells."""
    if len(row) == 0:
        return row
    logits_of = evaluation.insertion_logits if is_insertion else evaluation.substitution_logits
    return evaluation.sampling.draw(logits_of(row, column), numbers)


def poisson(mean: Tensor, uniforms: Tensor) -> Tensor:
    """Poisson numbers by inversion, at most 1,000."""
    number = torch.zeros_like(mean, dtype=torch.int64)
    mass = (-mean).exp()
    below = mass.clone()
    for index in range(1, 1001):
        exceeds = uniforms > below
        if not bool(exceeds.any()):
            break
        number += exceeds.long()
        mass = mass * mean / index
        below += mass
    return number
