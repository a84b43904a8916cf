"""Alignments of a source with a target: which token becomes which, which are deleted, which inserted.

An alignment is a list of columns (a, b), a of the source or blank, b of the target or blank, never both
blank, such that without blanks the a spell the source and the b the target. A column with a = b is kept; the
others are the edits: (a, blank) deletes, (blank, b) inserts, (a, b) substitutes.

No sampler is better than the alignment that its network learnt from: it decides which edits exist, so it is
an option with a name.

Axes: ``pairs`` of texts, ``width`` columns of the longest alignment.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import require, uniform

BLANK = -(2**62)
"""No token, and no wrong id either: in both rows of a column beyond the end of an alignment."""
Alignment = Literal["optimal", "left", "disjoint"]
"""optimal: a smallest number of edits, each of deletion, insertion and substitution counting as one; among
equals drawn from the seed, each step of the way back from the end with equal probability. left: token i with
token i, what is longer is deleted or inserted at the end. disjoint: the whole source is deleted, then the
whole target inserted."""
_STREAM_TIES = 16


def align(
    alignment: Alignment, sources: Sequence[Tensor], targets: Sequence[Tensor], seeds: Int[Tensor, " pairs"]
) -> tuple[Int[Tensor, "pairs width"], Int[Tensor, "pairs width"]]:
    """Align each source with its target.

    Args:
        alignment: How, see :data:`Alignment`.
        sources: Token ids of each source.
        targets: Token ids of each target.
        seeds: Source of the draws of each pair, shape (pairs,).

    Returns:
        The a and the b of the columns, padded with columns of two blanks on the right.
    """
    z0, z1 = pad_texts(sources), pad_texts(targets)
    if z0.shape[1] == 0 or z1.shape[1] == 0:
        width = max(z0.shape[1], z1.shape[1])
        return _widen(z0, width), _widen(z1, width)
    return _ALIGN[alignment](z0, z1, seeds)


def pad_texts(texts: Sequence[Tensor]) -> Int[Tensor, "texts width"]:
    """Texts side by side, with blanks on their right; there may be none."""
    if not texts:
        return torch.empty(0, 0, dtype=torch.int64)
    return pad_sequence(list(texts), batch_first=True, padding_value=BLANK)


def check_alignment(alignment: str) -> None:
    """Refuse what is no :data:`Alignment`.

    Raises:
        ValueError: If it is another word.
    """
    require(alignment in _ALIGN, "alignment", alignment, "'optimal', 'left' or 'disjoint'")


def _left(z0: Tensor, z1: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    width = max(z0.shape[1], z1.shape[1])
    return _widen(z0, width), _widen(z1, width)


def _disjoint(z0: Tensor, z1: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    num_source, width = (z0 != BLANK).sum(1, keepdim=True), z0.shape[1] + z1.shape[1]
    later = torch.full((len(z1), width), BLANK)
    later.scatter_(1, num_source + torch.arange(z1.shape[1]), z1)
    return _widen(z0, width), later


def _optimal(z0: Tensor, z1: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Dynamic programme over prefixes, all pairs at once, and the way back with ties drawn."""
    table = _distances(z0, z1)
    pairs, width = torch.arange(len(z0)), z0.shape[1] + z1.shape[1]
    i, j = (z0 != BLANK).sum(1), (z1 != BLANK).sum(1)
    ties = uniform(seeds, width, step=0, stream=_STREAM_TIES)
    columns: list[Tensor] = []
    for step in range(width):
        up, left = (i - 1).clamp(min=0), (j - 1).clamp(min=0)
        a, b, here = z0[pairs, up], z1[pairs, left], table[pairs, i, j]
        possible = torch.stack(
            (
                (i > 0) & (j > 0) & (table[pairs, up, left] + (a != b) == here),
                (i > 0) & (table[pairs, up, j] + 1 == here),
                (j > 0) & (table[pairs, i, left] + 1 == here),
            ),
            1,
        )
        chosen = (possible.cumsum(1) <= (ties[:, step] * possible.sum(1)).long().unsqueeze(1)).sum(1)
        takes_a, takes_b = (i > 0) & (chosen != 2) & (chosen < 3), (j > 0) & (chosen != 1) & (chosen < 3)
        columns.append(torch.stack((a.where(takes_a, BLANK), b.where(takes_b, BLANK)), 1))
        i, j = i - takes_a.long(), j - takes_b.long()
    backwards = torch.stack(columns, 2)
    number = (backwards != BLANK).any(1).sum(1)
    place = number.unsqueeze(1) - 1 - torch.arange(int(number.max()))
    ordered = backwards.gather(2, place.clamp(min=0).unsqueeze(1).expand(-1, 2, -1))
    return tuple(ordered.masked_fill((place < 0).unsqueeze(1), BLANK).unbind(1))  # type: ignore[return-value]


def _distances(z0: Tensor, z1: Tensor) -> Tensor:
    """(pairs, source + 1, target + 1) edit distances of all prefixes; padding counts as tokens.

    Insertions along a row are a running minimum: D[j] = j + min over k <= j of (D'[k] - k).
    """
    number = torch.arange(z1.shape[1] + 1, dtype=torch.int32)
    rows = [number.expand(len(z0), -1)]
    for i in range(z0.shape[1]):
        above = rows[-1] + 1
        above[:, 1:] = above[:, 1:].minimum(rows[-1][:, :-1] + (z0[:, i : i + 1] != z1))
        rows.append((above - number).cummin(1).values + number)
    return torch.stack(rows, 1)


def _widen(table: Tensor, width: int) -> Tensor:
    """The table with columns of blanks on its right."""
    wide = table.new_full((len(table), width), BLANK)
    wide[:, : table.shape[1]] = table
    return wide


_Align = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_ALIGN: dict[str, _Align] = {"optimal": _optimal, "left": _left, "disjoint": _disjoint}
