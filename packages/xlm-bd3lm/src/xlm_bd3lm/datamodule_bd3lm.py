"""Collators: examples to batches. The forward process of the diffusion, masking cells, lives here.

Every block of a row has a noise level of its own. The layout of the tokens is described in
:mod:`xlm_bd3lm.layout_bd3lm`. All randomness of a row comes from its seed (and, for stratified levels, its
place in the training stream), so a row looks the same in every batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, places_of, require, seeds_of, stratified_times, uniform
from xlm.modules.records import Example
from xlm_bd3lm.layout_bd3lm import Layout
from xlm_bd3lm.noise_bd3lm import (
    STREAM_CELLS,
    STREAM_LEVEL,
    BlockNoise,
    levels_of_blocks,
    mask_by_number,
    mask_by_time,
    ranks_of_draws,
)
from xlm_bd3lm.rows_bd3lm import make_batch
from xlm_bd3lm.types_bd3lm import BD3LMBatch, BD3LMPromptBatch


class BD3LMCollator:
    """Draws a noise level for each block of each row and masks its cells, for the training loss.

    The levels u of the blocks are uniform on (0, 1), each by itself, stratified inside a row and over the
    training stream, in a random order: no block has its own part of the levels. Two kinds of noise have the
    same expected loss (Arriola et al. 2025, arXiv:2503.09573, section 3):

        count    n ~ U{1..D_b} of the D_b cells that are not given are masked, all sets of n being equally
                 likely; they weigh D_b / n
        time     t = min_time + (1 - min_time) u; each of these cells is masked with probability 1 - alpha(t)
                 and weighs -alpha'(t) / (1 - alpha(t))

    The first is the second averaged over the times and without blocks that have no mask, so its gradient
    varies less. With D = 1 it is autoregressive training: every cell is masked, and weighs 1.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS; None for no EOS and a given length: then a token that separates texts inside a
            target is like any other.
        block_length: D, cells of a block, at least 1.
        max_target_length: The most target tokens; None for no limit and a given length.
        noise: "count" or "time".
        schedule: alpha, of the time noise.
        min_time: Where its times begin, in [0, 1); the weight grows like 1/t towards 0.
        clip: Lowest and highest level, in [0, 1], the weights unchanged (section 5.2 there): times, or shares
            n / D_b. None for all levels. The training loss then is no bound of the likelihood, unless D = 1.

    Raises:
        ValueError: If an option is outside its range, or the time noise has no schedule.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        block_length: int,
        max_target_length: int | None = None,
        noise: Literal["count", "time"] = "count",
        schedule: NoiseSchedule | None = None,
        min_time: float = 1e-3,
        clip: Sequence[float] | None = None,
    ) -> None:
        require(noise in ("count", "time"), "noise", noise, "'count' or 'time'")
        require(0 <= min_time < 1, "min_time", min_time, "in [0, 1)")
        low, high = (0.0, 1.0) if clip is None else clip
        require(0 <= low < high <= 1, "clip", clip, "None or two rising numbers in [0, 1]")
        if noise == "time" and schedule is None:
            raise ValueError("noise='time' needs a schedule")
        self._noise, self._schedule = noise, schedule
        self._min_time, self._clip = min_time, clip
        self._layout = Layout(
            mask_id=mask_id,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            block_length=block_length,
            max_target_length=max_target_length,
        )

    def __call__(self, examples: Sequence[Example]) -> BD3LMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than max_target_length or holds MASK, PAD
                or EOS, or ``fixed`` or ``segment_ids`` do not fit their target.
        """
        rows, seeds = self._layout.lay_out(examples), seeds_of(examples)
        levels = levels_of_blocks(
            stratified_times(seeds, places_of(examples), stream=STREAM_LEVEL), seeds, rows.blocks
        )
        keys = uniform(seeds, rows.ids.shape[1], step=0, stream=STREAM_CELLS)
        return make_batch(rows, self._layout, self._mask(rows.eligible, levels, keys))

    def _mask(self, eligible: Tensor, levels: Tensor, keys: Tensor) -> BlockNoise:
        block_length = self._layout.block_length
        low, high = self._clip or (0.0, 1.0)
        if self._noise == "count":
            return mask_by_number(eligible, levels, keys, block_length, shares=(low, high))
        assert self._schedule is not None
        low = max(low, self._min_time)
        return mask_by_time(eligible, low + (high - low) * levels, keys, block_length, self._schedule)


class BD3LMLikelihoodCollator:
    """Masks cells so that the likelihood bound is estimated without bias, independent of the training noise.

    In each block n ~ U{1..D_b} cells that are not given are masked, all sets of n being equally likely; they
    weigh D_b / n. All blocks of a draw are scored in one forward pass.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`BD3LMCollator`.
        block_length: D, cells of a block, at least 1.
        max_target_length: The most target tokens; None for no limit and a given length.
        num_draws: K, the number of draws of each example. The n of a block are stratified over them: in an
            order of its own it takes the quantiles (k + u_k) / K with u_k ~ U(0, 1), k = 0..K-1. With D = 1
            nothing is drawn and one draw is made.
        window_length: W, the most cells that are scored together, a multiple of D: a block beyond sees
            prompt, BOS and the W / D - 1 blocks before it, as in a predictor of the same window; None for no
            limit.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        block_length: int,
        max_target_length: int | None = None,
        num_draws: int = 1,
        window_length: int | None = None,
    ) -> None:
        require(num_draws >= 1, "num_draws", num_draws, "at least 1")
        self._layout = Layout(
            mask_id=mask_id,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            block_length=block_length,
            max_target_length=max_target_length,
        )
        check_window(window_length, block_length)
        self._window_length = window_length
        self._num_draws = 1 if block_length == 1 else num_draws

    def __call__(self, examples: Sequence[Example]) -> BD3LMBatch:
        """Make a batch of len(examples) * num_draws rows and one more for each block beyond the window.

        Raises:
            ValueError: If :meth:`BD3LMCollator.__call__` raises it.
        """
        rows = self._layout.lay_out(examples).repeat(self._num_draws)
        own, num_blocks = seeds_of(examples), -(-rows.ids.shape[1] // self._block_length)
        seeds = own.repeat_interleave(self._num_draws)
        draw = torch.arange(len(seeds)) % self._num_draws
        drawn = uniform(seeds, num_blocks, step=draw, stream=STREAM_LEVEL)
        quantile = (ranks_of_draws(own, num_blocks, self._num_draws) + drawn) / self._num_draws
        keys = uniform(seeds, rows.ids.shape[1], step=draw, stream=STREAM_CELLS)
        noise = mask_by_number(rows.eligible, quantile, keys, self._block_length)
        batch = make_batch(rows, self._layout, noise, window_length=self._window_length)
        batch["num_draws"] = torch.tensor(self._num_draws)
        batch["is_exact"] = torch.tensor(self._block_length == 1)
        return batch

    @property
    def _block_length(self) -> int:
        return self._layout.block_length


class BD3LMPromptCollator:
    """Keeps the given tokens and masks all other cells, for generation.

    A target without ``fixed`` is a reference only: nothing of it is read but, where the length is given, its
    length.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`BD3LMCollator`.
        block_length: D, cells of a block, at least 1.
        max_target_length: Where a text without EOS is cut; None for a given length.
        default_length: Length of examples without target where the length is given; None for
            max_target_length.

    Raises:
        ValueError: If a length is outside its range, or default_length is given and the length is modelled.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        block_length: int,
        max_target_length: int | None = None,
        default_length: int | None = None,
    ) -> None:
        self._layout = Layout(
            mask_id=mask_id,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            block_length=block_length,
            max_target_length=max_target_length,
        )
        if default_length is not None and (self._layout.models_length or default_length < 0):
            raise ValueError(
                f"default_length must be at least 0, and None with EOS and max_target_length, "
                f"got default_length={default_length} and max_target_length={max_target_length}"
            )
        self._default_length = default_length

    def __call__(self, examples: Sequence[Example]) -> BD3LMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If :meth:`BD3LMCollator.__call__` raises it, or the length of an example is unknown.
        """
        known = [self._with_length(example) for example in examples]
        rows = self._layout.lay_out(known, for_generation=True)
        prompt = torch.arange(rows.prompt_ids.shape[1]) < rows.prompt_length.unsqueeze(1)
        num_cells, limit = rows.exists.sum(1), self._layout.max_target_length
        return {
            "prompt_ids": rows.prompt_ids,
            "prompt_mask": prompt,
            "input_ids": rows.ids.masked_fill(rows.eligible, self._layout.mask_id),
            "attention_mask": rows.exists,
            "masked": rows.eligible,
            "may_end": rows.may_end,
            "target_start": torch.zeros_like(rows.prompt_length),
            "max_length": num_cells if limit is None else num_cells.clamp(max=limit),
        }

    def _with_length(self, example: Example) -> Example:
        """The example, with a target of the right length if it has none and needs one."""
        if "target_ids" in example or self._layout.models_length:
            return example
        length = self._layout.max_target_length if self._default_length is None else self._default_length
        if length is None:
            raise ValueError(
                "an example has no target_ids, so its length is unknown: give max_target_length and eos_id, "
                "and the model decides the length, or default_length"
            )
        return {**example, "target_ids": torch.full((length,), self._layout.mask_id)}


def check_window(window_length: int | None, block_length: int) -> None:
    """Refuse a window that does not consist of blocks.

    Raises:
        ValueError: If it is no multiple of the block length, or that is below 1.
    """
    require(block_length >= 1, "block_length", block_length, "at least 1")
    is_multiple = window_length is None or (window_length >= 1 and window_length % block_length == 0)
    allowed = f"None or a multiple of block_length={block_length}"
    require(is_multiple, "window_length", window_length, allowed)
