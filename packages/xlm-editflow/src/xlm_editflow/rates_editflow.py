"""Rates of the operations, in the clock du / u: the expected numbers of pending edits.

At a text x and time u a token of x has at most one pending edit, a slot may have several. With the logits a
of a column, the rates of its operations are

    insert                 softplus(a_insert + log u)
    delete, substitute     softmax of (0, a_delete + log u, a_substitute + log u), the first to keep it

so that all of them vanish like u where a is bounded: at finished texts, where the loss needs it. Which token
is inserted, or substitutes another, is a softmax of its own; a token is never substituted by itself.

Axes: ``rows``, ``length`` columns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

INSERTION, DELETION, SUBSTITUTION = 0, 1, 2
"""Indices of the operation logits."""


@dataclass(frozen=True)
class Rates:
    """Logarithms of the rates of each column, as if everything were open and editable."""

    log_insert: Float64[Tensor, "rows length"]
    """Tokens into the slot of the column."""
    log_delete: Float64[Tensor, "rows length"]
    """Its token is deleted."""
    log_substitute: Float64[Tensor, "rows length"]
    """Its token is substituted by another."""

    @staticmethod
    def of(
        operation_logits: Float[Tensor, "rows length operations"], log_time: Float64[Tensor, " rows"]
    ) -> "Rates":
        """The rates of operation logits, at log u."""
        tilted = operation_logits.to(torch.float64) + log_time[:, None, None]
        # log(1 + e^a) underflows before its logarithm, a, does.
        insert = tilted[..., INSERTION]
        tail = insert.clamp(min=-30)
        log_insert = torch.where(insert < -30, insert, torch.logaddexp(tail, torch.zeros_like(tail)).log())
        edits = F.pad(tilted[..., DELETION:], (1, 0)).log_softmax(-1)
        return Rates(log_insert, edits[..., DELETION], edits[..., SUBSTITUTION])

    def edited(self) -> Float64[Tensor, "rows length"]:
        """Probability that the token of each column is deleted or substituted."""
        return torch.logaddexp(self.log_delete, self.log_substitute).exp()

    def total(
        self, open_slots: Bool[Tensor, "rows length"], editable: Bool[Tensor, "rows length"]
    ) -> Float64[Tensor, " rows"]:
        """Sum of the rates of all that may happen in each row."""
        inserted = torch.where(open_slots, self.log_insert.exp(), 0.0)
        return inserted.sum(1) + torch.where(editable, self.edited(), 0.0).sum(1)

    def table(
        self, open_slots: Bool[Tensor, "rows length"], editable: Bool[Tensor, "rows length"]
    ) -> Float64[Tensor, "rows length operations"]:
        """Log-rates of the three operations of each column, -inf at those that cannot happen."""
        possible = torch.stack((open_slots, editable, editable), -1)
        rates = torch.stack((self.log_insert, self.log_delete, self.log_substitute), -1)
        return rates.masked_fill(~possible, -torch.inf)
