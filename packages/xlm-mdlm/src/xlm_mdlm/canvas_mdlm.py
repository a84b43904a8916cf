"""Rows while they are written: what every sampler works on.

A sampler decides which cells are written when; the canvas implements how: it evaluates the network on the
rows concerned only, computes logits at the cells concerned only, draws tokens, counts and records.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from xlm.modules import TokenSampling, uniform
from xlm_mdlm.types_mdlm import MDLMNetwork, call_model
from xlm_mdlm.vocabulary_mdlm import CellVocabulary

STREAM_CELLS = 0
"""Stream of the draws that say which cells are written or masked again."""
_STREAM_TOKENS = 1


@dataclass(frozen=True)
class Denoiser:
    """p_theta(x_0 | x_t) as it is sampled: the network, the tokens that are possible, and the filters.

    The filters act on p_theta alone. They never affect which cells are
    unmasked, nor how fast a row is written.
    """

    model: MDLMNetwork
    vocabulary: CellVocabulary
    sampling: TokenSampling


@dataclass(frozen=True)
class Canvas:
    """Rows with masks, (rows, length) each unless noted; written in place.

    The token of a cell depends on its row's seed, the turn and the column, so that a row comes out the same
    beside any others.
    """

    denoiser: Denoiser
    input_ids: Tensor
    attention_mask: Tensor
    masked: Tensor
    may_end: Tensor
    seeds: Tensor
    """(rows,)"""
    nfe: Tensor
    """(rows,) evaluations of the network that each row took part in."""
    mask_id: int
    edits: list[Tensor] = field(default_factory=list[Tensor])
    """Tables (4, edits) of turn, row, column and token, in order."""

    def waiting(self) -> Tensor:
        """(rows,) True at rows with a mask left of the end of their text; those without are complete."""
        ended = (self.may_end & ~self.masked & self.denoiser.vocabulary.ends(self.input_ids)).cumsum(1) > 0
        return (self.masked & ~ended).any(1)

    def evaluate(self, row: Tensor, column: Tensor, noise: Tensor) -> Tensor:
        """Evaluate the network once on the rows of some cells.

        Args:
            row: Row of each cell, (cells,); rows that do not occur are not evaluated.
            column: Column of each cell, (cells,).
            noise: -log alpha of its row, (cells,).

        Returns:
            Logits of the cells, -inf at impossible tokens, (cells, vocab).
        """
        rows, index = torch.unique(row, return_inverse=True)
        width = int(self.attention_mask[rows].sum(1).max())
        logits = call_model(
            self.denoiser.model,
            self.input_ids[rows, :width],
            self.attention_mask[rows, :width],
            torch.zeros_like(rows, dtype=noise.dtype).scatter(0, index, noise),
            positions=index * width + column,
        )
        self.nfe[rows] += 1
        return self.denoiser.vocabulary.restrict(logits, self.may_end[row, column])

    def write(self, row: Tensor, column: Tensor, logits: Tensor, *, turn: int) -> None:
        """Draw tokens from the logits (cells, vocab) and write them into masked cells.

        Args:
            row: Row of each cell, (cells,).
            column: Column of each cell, (cells,).
            logits: Logits of each cell, (cells, vocab).
            turn: Number of the evaluation, from 1, that gave the logits.
        """
        uniforms = uniform(self.seeds, self.input_ids.shape[1], step=turn, stream=_STREAM_TOKENS)
        tokens = self.denoiser.sampling.draw(logits, uniforms[row, column])
        self._edit(row, column, tokens, turn)

    def remask(self, row: Tensor, column: Tensor, *, turn: int) -> None:
        """Mask written cells again."""
        self._edit(row, column, torch.full_like(row, self.mask_id), turn)

    def _edit(self, row: Tensor, column: Tensor, tokens: Tensor, turn: int) -> None:
        self.input_ids[row, column] = tokens
        self.masked[row, column] = tokens == self.mask_id
        self.edits.append(torch.stack([torch.full_like(row, turn), row, column, tokens]))
