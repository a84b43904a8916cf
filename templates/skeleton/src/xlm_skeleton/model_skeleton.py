"""The network: a bidirectional transformer that predicts the tokens of masked cells."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import RotaryTransformer


class Skeleton(nn.Module):
    """Token logits at the cells that are asked for.

    Args:
        vocab_size: Number of token ids, special tokens included.
        d_model: Width of the hidden states.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides d_model.
        suppressed_ids: Ids that never stand in a text (MASK, PAD, ...); they have probability 0.
        dropout: Probability of dropping an entry of a block's update, in training.
    """

    suppressed: Tensor

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        suppressed_ids: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.transformer = RotaryTransformer(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
        )
        self.token_head = nn.Linear(d_model, vocab_size, bias=False)
        suppressed = torch.isin(
            torch.arange(vocab_size), torch.tensor(list(suppressed_ids), dtype=torch.int64)
        )
        self.register_buffer("suppressed", suppressed, persistent=False)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"],
        *,
        positions: Int[Tensor, " cells"],
    ) -> Float[Tensor, "cells vocab"]:
        """Compute logits at some cells.

        Args:
            input_ids: Token ids with MASK at the cells to predict, shape (rows, length).
            attention_mask: True at real tokens, shape (rows, length).
            positions: Cells to compute logits for, as indices into the rows * length cells, shape (cells,).

        Returns:
            Logits, -inf at suppressed ids, shape (cells, vocab).
        """
        hidden: Tensor = self.transformer(input_ids, attention_mask)
        logits: Tensor = self.token_head(torch.index_select(hidden.flatten(0, 1), 0, positions))
        return logits.masked_fill(self.suppressed, -torch.inf)
