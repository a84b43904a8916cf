"""The two streams of a row in one forward pass, [x_t ; x_0], and who sees whom.

With b the number of a token's block (0 for prompt and BOS), a query q sees a key k if

    query \\ key    noisy            clean
    noisy          b(k) = b(q)      b(k) < b(q)
    clean          never            b(k) <= b(q)

so each noisy block sees itself and the clean tokens before it (Arriola et al. 2025, arXiv:2503.09573, section
3.1 and supplement B.6). A token has the same position in both streams. The clean copy of a row's last block
is seen by nothing that is scored and is not there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


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
    num_noisy = noisy_blocks.shape[1]
    query = torch.cat((noisy_blocks, clean_blocks), dim=1).unsqueeze(2)
    sees_noisy = noisy_blocks.unsqueeze(1) == query
    sees_noisy[:, num_noisy:] = False
    # Of a noisy query the block before its own is the last one that it sees.
    last = query.clone()
    last[:, :num_noisy] -= 1
    clean = clean_blocks.unsqueeze(1)
    sees_clean = (clean <= last) & ((clean >= 0) == (query >= 0))
    return torch.cat((sees_noisy, sees_clean), dim=2)


@dataclass(frozen=True)
class Streams:
    """Noisy cells and clean tokens side by side, (rows, length) with length = cells + past."""

    input_ids: Int[Tensor, "rows length"]
    attention_mask: Bool[Tensor, "rows length length"]
    position_ids: Int[Tensor, "rows length"]

    @staticmethod
    def of(
        noisy: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor],
        start: Int[Tensor, " rows"],
        *,
        segments: tuple[Tensor, Tensor] | None = None,
    ) -> "Streams":
        """Join the streams.

        Args:
            noisy: Ids and blocks of the noisy cells, (rows, cells) each.
            clean: Ids and blocks of the clean tokens, (rows, past) each.
            start: Position of the first noisy cell, shape (rows,).
            segments: Of packed blocks, the documents of the noisy cells and of the clean tokens.
        """
        mask = block_mask(noisy[1], clean[1])
        if segments is not None:
            document = torch.cat(segments, dim=1)
            mask &= document.unsqueeze(2) == document.unsqueeze(1)
        cell = torch.arange(noisy[0].shape[1], device=start.device)
        # Padding may stand inside the past: a position is the number of tokens on the left.
        place = ((clean[1] >= 0).cumsum(1) - 1).clamp(min=0)
        return Streams(
            input_ids=torch.cat((noisy[0], clean[0]), dim=1),
            attention_mask=mask,
            position_ids=torch.cat((start.unsqueeze(1) + cell, place), dim=1),
        )

    def positions(
        self, row: Int[Tensor, " masked"], column: Int[Tensor, " masked"]
    ) -> Int[Tensor, " masked"]:
        """Noisy cells as indices into the rows * length columns."""
        return row * self.input_ids.shape[1] + column
