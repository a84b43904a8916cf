"""Batches of the loss: rows and their noise as the two streams of :mod:`xlm_bd3lm.streams_bd3lm`."""

from dataclasses import replace

import torch
from torch import Tensor

from xlm_bd3lm.layout_bd3lm import Layout, Rows
from xlm_bd3lm.noise_bd3lm import BlockNoise
from xlm_bd3lm.streams_bd3lm import spans_of
from xlm_bd3lm.types_bd3lm import NUM_LEVELS, BD3LMBatch


def make_batch(
    rows: Rows, layout: Layout, noise: BlockNoise, *, window_length: int | None = None
) -> BD3LMBatch:
    """The rows with MASK at masked cells, and the clean tokens that their blocks see.

    Args:
        rows: The rows without noise.
        layout: What laid them out.
        noise: Their masked cells.
        window_length: The most cells of a row, a multiple of the block length. Each block beyond gets a row
            of its own, where it and the blocks before it fill a window, and only it has masks.
    """
    draw = torch.arange(len(rows.ids))
    if window_length is not None and rows.ids.shape[1] > window_length:
        rows, noise, draw = _windows(rows, noise, window_length, layout.block_length)
    clean_ids, clean_blocks, clean_segments = rows.past()
    row, column = noise.masked.nonzero(as_tuple=True)
    share = noise.share[row, column]
    batch: BD3LMBatch = {
        "input_ids": rows.ids.masked_fill(noise.masked, layout.mask_id),
        "target_ids": rows.ids,
        "cell_blocks": rows.blocks,
        "clean_ids": clean_ids,
        "clean_blocks": clean_blocks,
        "prompt_length": rows.prompt_length,
        "masked": noise.masked,
        "masked_row": row,
        "masked_column": column,
        # Intervals are closed on the right.
        "masked_level": ((share * NUM_LEVELS).ceil().long() - 1).clamp(0, NUM_LEVELS - 1),
        "may_end": rows.may_end,
        "may_pad": rows.may_pad,
        "weight": noise.weight[row, column],
        "num_eligible": rows.eligible.sum(1),
        "num_tokens": rows.num_tokens,
        "models_length": torch.full((len(rows.ids),), layout.models_length),
        "draw_of_row": draw,
    }
    if spans := spans_of(rows.blocks, clean_blocks):
        batch["spans"] = spans
    if rows.segment_ids is not None and clean_segments is not None:
        batch["cell_segments"], batch["clean_segments"] = rows.segment_ids, clean_segments
    return batch


def _windows(
    rows: Rows, noise: BlockNoise, window_length: int, block_length: int
) -> tuple[Rows, BlockNoise, Tensor]:
    """Rows of at most so many cells with their noise, and the row (rows,) that each one is a part of.

    The first window of a row has all blocks that fit, each later one ends with the one block that it scores.
    """
    num_cells = rows.ids.shape[1]
    num_windows = 1 + -(-(num_cells - window_length) // block_length)
    place = torch.arange(window_length)
    columns = block_length * torch.arange(num_windows).unsqueeze(1) + place
    exists, columns = columns < num_cells, columns.clamp(max=num_cells - 1)
    is_scored = (torch.arange(num_windows).unsqueeze(1) == 0) | (place >= window_length - block_length)
    is_scored &= exists
    # Row by row, the windows that have something to score.
    needed = (noise.masked[:, columns] & is_scored).any(2)
    needed[:, 0] = True
    row, window = needed.nonzero(as_tuple=True)

    def show(table: Tensor) -> Tensor:
        return table[row].gather(1, columns[window]).masked_fill(~exists[window], 0)

    scored = is_scored[window]
    parts = replace(
        rows,
        ids=show(rows.ids),
        blocks=torch.where(show(rows.blocks) > 0, 1 + place // block_length, -1),
        eligible=show(rows.eligible) & scored,
        may_end=show(rows.may_end),
        may_pad=show(rows.may_pad),
        segment_ids=None if rows.segment_ids is None else show(rows.segment_ids),
        prompt_ids=rows.prompt_ids[row],
        prompt_length=rows.prompt_length[row],
        num_tokens=rows.num_tokens[row].where(window == 0, 0),
    )
    of_parts = BlockNoise(show(noise.masked) & scored, show(noise.weight), show(noise.share))
    return parts, of_parts, row
