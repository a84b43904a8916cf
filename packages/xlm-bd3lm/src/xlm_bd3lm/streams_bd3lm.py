"""The two streams of a row in one forward pass, [x_t ; x_0], and who sees whom.

With b the number of a token's block (0 for prompt and BOS), a query q sees a key k if

    query \\ key    noisy            clean
    noisy          b(k) = b(q)      b(k) < b(q)
    clean          never            b(k) <= b(q)

so each noisy block sees itself and the clean tokens before it (Arriola et al. 2025, arXiv:2503.09573, section
3.1 and supplement B.6). A token has the same position in both streams. The clean copy of a row's last block
is seen by nothing that is scored and is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from xlm.modules import MaskPiece, PiecewiseMask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Span(NamedTuple):
    """Some consecutive columns of a stream, and the keys that one of them sees in any row."""

    is_noisy: bool
    start: int
    stop: int
    noisy_keys: tuple[int, int]
    """The first noisy column of these keys, and the one behind the last."""
    clean_keys: int
    """The clean column behind the last of them; the first is 0."""


def spans_of(
    noisy_blocks: Int[Tensor, "rows cells"], clean_blocks: Int[Tensor, "rows past"], *, size: int = 128
) -> list[Span]:
    """Pieces of the columns of both streams, with the keys that they see; none for rows of one piece.

    Of the 4 cells^2 scores of one table (1 + 2 size / cells) cells^2 are left. It reads the tables, so it
    belongs into the collator: on a GPU it would force a synchronisation.

    Args:
        noisy_blocks: Blocks of the noisy cells, shape (rows, cells), rising; -1 at padding.
        clean_blocks: Blocks of the clean tokens, shape (rows, past), rising; -1 at padding.
        size: Columns of a piece.
    """
    cells, past = noisy_blocks.shape[1], clean_blocks.shape[1]
    if cells <= size:
        return []
    spans: list[Span] = []
    for start in range(0, cells, size):
        own, stop = noisy_blocks[:, start : start + size], min(start + size, cells)
        last = own.amax(1, keepdim=True)
        first = own.where(own > 0, last).amin(1, keepdim=True)
        low, high = _extent((noisy_blocks >= first) & (noisy_blocks <= last) & (noisy_blocks > 0))
        _, clean = _extent((clean_blocks < last) & (clean_blocks >= 0))
        spans.append(Span(True, start, stop, (min(low, start), max(high, stop)), clean))
    for start in range(0, past, size):
        stop = min(start + size, past)
        last = clean_blocks[:, start:stop].amax(1, keepdim=True)
        _, clean = _extent((clean_blocks <= last) & (clean_blocks >= 0))
        spans.append(Span(False, start, stop, (0, 0), max(clean, stop)))
    return spans


def _extent(seen: Bool[Tensor, "rows columns"]) -> tuple[int, int]:
    """The first column that is True in any row, and the one behind the last; of none, the number and 0."""
    columns = seen.any(0).nonzero()
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) > 0 else (seen.shape[1], 0)


def block_mask(
    noisy_blocks: Int[Tensor, "rows cells"], clean_blocks: Int[Tensor, "rows past"]
) -> Bool[Tensor, "rows length length"]:
    """Who sees whom in [x_t ; x_0].

    Args:
        noisy_blocks: Blocks of the noisy cells, shape (rows, cells); -1 at padding.
        clean_blocks: Blocks of the clean tokens, shape (rows, past); -1 at padding.

    Returns:
        True where a query (axis 1) sees a key (axis 2), shape (rows, cells + past, cells + past). Padding
        sees padding, so that no query is without a key, and nothing else sees it.
    """
    of_noisy = torch.cat((_same(noisy_blocks, noisy_blocks), _before(noisy_blocks, clean_blocks)), dim=2)
    of_clean = pad(_up_to(clean_blocks, clean_blocks), (noisy_blocks.shape[1], 0))
    return torch.cat((of_noisy, of_clean), dim=1)


def _same(query: Tensor, key: Tensor) -> Tensor:
    """(rows, queries, keys) whether a key is of the query's block."""
    return key.unsqueeze(1) == query.unsqueeze(2)


def _before(query: Tensor, key: Tensor) -> Tensor:
    """(rows, queries, keys) whether a key is of an earlier block than the query."""
    return (key.unsqueeze(1) < query.unsqueeze(2)) & (key >= 0).unsqueeze(1)


def _up_to(query: Tensor, key: Tensor) -> Tensor:
    """(rows, queries, keys) whether a key is of the query's block or an earlier one."""
    return (key.unsqueeze(1) <= query.unsqueeze(2)) & _same(query >= 0, key >= 0)


@dataclass(frozen=True)
class Streams:
    """Noisy cells and clean tokens side by side, (rows, length) with length = cells + past."""

    input_ids: Int[Tensor, "rows length"]
    attention_mask: Bool[Tensor, "rows length length"] | PiecewiseMask
    position_ids: Int[Tensor, "rows length"]

    @staticmethod
    def of(
        noisy: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor],
        start: Int[Tensor, " rows"],
        *,
        segments: tuple[Tensor, Tensor] | None = None,
        spans: Sequence[Span] = (),
        flex: bool = False,
    ) -> "Streams":
        """Join the streams.

        Args:
            noisy: Ids and blocks of the noisy cells, (rows, cells) each.
            clean: Ids and blocks of the clean tokens, (rows, past) each.
            start: Position of the first noisy cell, shape (rows,).
            segments: Of packed blocks, the documents of the noisy cells and of the clean tokens.
            spans: Pieces of the mask, see :func:`spans_of`; none for one table.
            flex: Whether a mask in pieces also comes as that of FlexAttention, which is then used.
        """
        cell = torch.arange(noisy[0].shape[1], device=start.device)
        # Padding may stand inside the past: a position is the number of tokens on the left.
        place = ((clean[1] >= 0).cumsum(1) - 1).clamp(min=0)
        return Streams(
            input_ids=torch.cat((noisy[0], clean[0]), dim=1),
            attention_mask=_mask((noisy[1], clean[1]), segments, spans, flex=flex),
            position_ids=torch.cat((start.unsqueeze(1) + cell, place), dim=1),
        )

    def positions(
        self, row: Int[Tensor, " masked"], column: Int[Tensor, " masked"]
    ) -> Int[Tensor, " masked"]:
        """Noisy cells as indices into the rows * length columns."""
        return row * self.input_ids.shape[1] + column


def _mask(
    blocks: tuple[Tensor, Tensor],
    segments: tuple[Tensor, Tensor] | None,
    spans: Sequence[Span],
    *,
    flex: bool,
) -> Tensor | PiecewiseMask:
    """The mask of both streams in one table, or in pieces."""
    if spans:
        pieces = [_piece(span, blocks, segments) for span in spans]
        return PiecewiseMask(pieces, _flex_mask(blocks, segments) if flex else None)
    mask = block_mask(*blocks)
    if segments is not None:
        document = torch.cat(segments, dim=1)
        mask &= _same(document, document)
    return mask


def _flex_mask(blocks: tuple[Tensor, Tensor], segments: tuple[Tensor, Tensor] | None) -> "BlockMask":
    """The same for FlexAttention, as a function of two columns."""
    from torch.nn.attention.flex_attention import create_block_mask  # importing it takes seconds

    block, num_noisy = torch.cat(blocks, dim=1), blocks[0].shape[1]
    document = torch.zeros_like(block) if segments is None else torch.cat(segments, dim=1)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = block[row, query], block[row, key]
        before = (other < own) & (other >= 0)
        of_noisy = torch.where(key < num_noisy, other == own, before)
        of_clean = (key >= num_noisy) & ((other == own) | before)
        return torch.where(query < num_noisy, of_noisy, of_clean) & (
            document[row, query] == document[row, key]
        )

    rows, length = block.shape
    return create_block_mask(sees, rows, None, length, length, device=block.device)


def _piece(span: Span, blocks: tuple[Tensor, Tensor], segments: tuple[Tensor, Tensor] | None) -> MaskPiece:
    """The part of the mask whose queries are the columns of a span."""
    (low, high), stop = span.noisy_keys, span.clean_keys
    stream, queries = (0 if span.is_noisy else 1), slice(span.start, span.stop)
    query = blocks[stream][:, queries]
    if span.is_noisy:
        mask = torch.cat((_same(query, blocks[0][:, low:high]), _before(query, blocks[1][:, :stop])), dim=2)
    else:
        mask = _up_to(query, blocks[1][:, :stop])
    if segments is not None:
        documents = torch.cat((segments[0][:, low:high], segments[1][:, :stop]), dim=1)
        mask &= _same(segments[stream][:, queries], documents)
    num_noisy = blocks[0].shape[1]
    ranges = [(low, high), (num_noisy, num_noisy + stop)]
    return MaskPiece([keys for keys in ranges if keys[0] < keys[1]], mask)
