"""Noise levels of blocks, and which cells they mask.

Tables of blocks have the shape (rows, blocks), those of cells (rows, cells) with D cells for each block, the
last one possibly short.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from xlm.modules import NoiseSchedule, take_top, uniform

STREAM_LEVEL = 0
STREAM_CELLS = 1
STREAM_ORDER = 2
_SMALLEST = 2.0**-53
"""Between 0 and the smallest number that is drawn."""


@dataclass(frozen=True)
class BlockNoise:
    """Masked cells, and the weight of each block's cross-entropies."""

    masked: Bool[Tensor, "rows cells"]
    weight: Float64[Tensor, "rows cells"]
    """The same in all cells of a block."""
    share: Float64[Tensor, "rows cells"]
    """Masked share of the cells of the block that can be masked; 0 if there are none."""


def levels_of_blocks(
    first: Float64[Tensor, " rows"], seeds: Int[Tensor, " rows"], blocks: Int[Tensor, "rows cells"]
) -> Float64[Tensor, "rows blocks"]:
    """One level in (0, 1) for each block: (first + pi(b) / M) mod 1 with pi a random order of the M blocks.

    Each is uniform if ``first`` is, whichever the block, the rows beside it and their number; those of a row
    lie one in each of M equal parts of the circle. (In the published code, block b of the row always gets the
    same part of (0, 1), and the expected loss is not the bound.)

    Args:
        first: A uniform number for each row.
        seeds: The source of the orders.
        blocks: Number of the block of each cell, from 1; -1 at padding.
    """
    number = blocks.amax(1, keepdim=True).clamp(min=1) if blocks.shape[1] > 0 else torch.ones_like(blocks)
    most = int(number.max()) if number.numel() > 0 else 0
    keys = uniform(seeds, most, step=0, stream=STREAM_ORDER)
    keys = keys.masked_fill(torch.arange(most) >= number, 2.0)
    rank = keys.argsort(dim=1).argsort(dim=1)
    return ((first.unsqueeze(1) + rank / number.to(torch.float64)) % 1).clamp(min=_SMALLEST)


def ranks_of_draws(
    seeds: Int[Tensor, " examples"], num_blocks: int, num_draws: int
) -> Int[Tensor, "rows blocks"]:
    """The stratum of each block in each of K draws: a random order of 0..K-1 for each block.

    The rows are the draws of each example, one after the other. With orders of their own, the blocks of a
    draw do not have low levels all together.
    """
    keys = uniform(seeds, num_blocks * num_draws, step=0, stream=STREAM_ORDER)
    ranks = keys.view(len(seeds), num_blocks, num_draws).argsort(dim=2).argsort(dim=2)
    return ranks.transpose(1, 2).reshape(len(seeds) * num_draws, num_blocks)


def mask_by_number(
    eligible: Bool[Tensor, "rows cells"],
    quantile: Float64[Tensor, "rows blocks"],
    keys: Float64[Tensor, "rows cells"],
    block_length: int,
    *,
    shares: tuple[float, float] = (0.0, 1.0),
) -> BlockNoise:
    """Mask n of the D_b eligible cells of each block, n being the ``quantile`` of U{1..D_b}.

    Args:
        eligible: True at cells that can be masked.
        quantile: In (0, 1).
        keys: Uniform numbers; the n largest are masked.
        block_length: D.
        shares: The lowest and the highest n / D_b.
    """
    cells = _by_block(eligible, block_length)
    size = cells.sum(2)
    low = (shares[0] * size).ceil().long().clamp(min=1)
    high = torch.maximum((shares[1] * size).floor().long(), low)
    # Rounding up can turn the largest product into the number of values itself.
    number = torch.minimum(low + ((high - low + 1) * quantile).long(), high)
    number = number.where(size > 0, 0)
    by_block = _by_block(keys, block_length)
    masked = take_top(by_block.flatten(0, 1), number.flatten(), cells.flatten(0, 1)).view(cells.shape)
    weight = size.to(torch.float64) / number.clamp(min=1)
    width = eligible.shape[1]
    share = number / size.clamp(min=1).to(torch.float64)
    return BlockNoise(
        masked=masked.flatten(1)[:, :width],
        weight=_of_cells(weight, block_length, width),
        share=_of_cells(share, block_length, width),
    )


def mask_by_time(
    eligible: Bool[Tensor, "rows cells"],
    time: Float64[Tensor, "rows blocks"],
    keys: Float64[Tensor, "rows cells"],
    block_length: int,
    schedule: NoiseSchedule,
) -> BlockNoise:
    """Mask each eligible cell of a block with probability 1 - alpha(t), independently.

    Args:
        eligible: True at cells that can be masked.
        time: t of each block.
        keys: A uniform number for each cell.
        block_length: D.
        schedule: alpha.
    """
    width = eligible.shape[1]
    masked = eligible & (keys >= _of_cells(schedule.alpha(time), block_length, width))
    size = _by_block(eligible, block_length).sum(2).clamp(min=1)
    share = _by_block(masked, block_length).sum(2) / size.to(torch.float64)
    return BlockNoise(
        masked=masked,
        weight=_of_cells(schedule.loss_weight(time), block_length, width),
        share=_of_cells(share, block_length, width),
    )


def _by_block(table: Tensor, block_length: int) -> Tensor:
    """(rows, blocks, D) a table of cells."""
    return pad(table, (0, -table.shape[1] % block_length)).unflatten(1, (-1, block_length))


def _of_cells(values: Tensor, block_length: int, width: int) -> Tensor:
    """(rows, cells) values of blocks."""
    return values.repeat_interleave(block_length, dim=1)[:, :width]
