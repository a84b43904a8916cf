"""Collators: examples to batches. The noise of the masked language model, masking cells, lives here.

A row is ``prompt... [BOS] target...``; only cells that are not given are masked. The layout of its tokens is
described in :mod:`xlm_mlm.layout_mlm`. All randomness of a row comes from its seed, so a row looks the same
in every batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xlm.modules import (
    NoiseSchedule,
    places_of,
    seeds_of,
    stratified_times,
    take_top,
    uniform,
)
from xlm.modules.records import Example
from xlm_mlm.layout_mlm import Layout, Rows
from xlm_mlm.types_mlm import MLMBatch, MLMPromptBatch

_STREAM_RATE = 0
_STREAM_CELLS = 1


class MLMCollator:
    """Masks cells at random, for the training loss and the likelihood.

    The mask rate of a row is t ~ U(0, 1) (Ghazvininejad et al. 2019, arXiv:1904.09324, draw the number of
    masks uniformly, which is the same distribution but for 0 masks), or 1 - alpha(t) of a noise schedule, or
    fixed; each cell that is not given is masked independently with this probability, always by MASK. Times
    are stratified over the training stream where the examples give their places in it; each rate has the
    same distribution either way.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS; None for no EOS: then PAD alone fills a fixed width, and a token that separates
            texts inside a target is like any other.
        target_length: W, cells of every row; None for as many as the target has tokens.
        schedule: alpha; None for uniform rates. The bound on the likelihood is the same for all: it is
            estimated with :class:`MLMLikelihoodCollator`.
        mask_rate: One probability of masking a cell for all rows, in (0, 1], in place of a schedule.

    Raises:
        ValueError: If target_length or mask_rate is outside its range, or schedule and mask_rate are given.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        target_length: int | None = None,
        schedule: NoiseSchedule | None = None,
        mask_rate: float | None = None,
    ) -> None:
        if schedule is not None and mask_rate is not None:
            raise ValueError(f"mask_rate and schedule exclude one another, got {mask_rate} and {schedule}")
        if mask_rate is not None and not 0 < mask_rate <= 1:
            raise ValueError(f"mask_rate must be None or in (0, 1], got {mask_rate}")
        self._layout = Layout(
            mask_id=mask_id, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length
        )
        self._schedule = schedule
        self._mask_rate = mask_rate

    def __call__(self, examples: Sequence[Example]) -> MLMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than target_length or holds MASK, PAD or
                EOS, or ``fixed`` or ``segment_ids`` do not fit their target.
        """
        rows = self._layout.lay_out(examples)
        seeds = seeds_of(examples)
        keys = uniform(seeds, rows.ids.shape[1], step=0, stream=_STREAM_CELLS)
        masked = rows.eligible & (keys < self._rates(examples, seeds).unsqueeze(1))
        batch = _training_batch(rows, masked, self._layout, num_draws=1)
        if self._mask_rate is None and self._schedule is None:
            size, num_masked = rows.eligible.sum(1), masked.sum(1)
            weight = (size + 1).to(torch.float64) / num_masked.clamp(min=1)
            batch["likelihood_weight"] = weight.masked_fill(num_masked == 0, 0.0)
        return batch

    def _rates(self, examples: Sequence[Example], seeds: Tensor) -> Tensor:
        """(rows,) probability of masking a cell."""
        if self._mask_rate is not None:
            return torch.full(seeds.shape, self._mask_rate, dtype=torch.float64)
        times = stratified_times(seeds, places_of(examples), stream=_STREAM_RATE)
        return times if self._schedule is None else 1 - self._schedule.alpha(times)


class MLMLikelihoodCollator:
    """Masks a uniform number of cells, at least one, for the likelihood with little noise.

    Of L cells that are not given n ~ U{1..L} are masked, all sets of n being equally likely. Against mask
    rates t ~ U(0, 1) this leaves out rows without masks, which add nothing to the bound.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`MLMCollator`.
        target_length: W, cells of every row; None for as many as the target has tokens.
        num_draws: K, the number of consecutive rows made from each example. Their n are stratified: draw k
            has n = 1 + floor(L (k + u_k) / K) with u_k ~ U(0, 1), so the mean over the draws of any function
            of the row is unbiased and varies less than with independent draws.

    Raises:
        ValueError: If target_length or num_draws is below 1.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        target_length: int | None = None,
        num_draws: int = 1,
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        self._layout = Layout(
            mask_id=mask_id, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length
        )
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> MLMBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: If :meth:`MLMCollator.__call__` raises it.
        """
        rows = self._layout.lay_out(examples).repeat(self._num_draws)
        seeds = seeds_of(examples).repeat_interleave(self._num_draws)
        draw = torch.arange(len(seeds)) % self._num_draws
        level = uniform(seeds, 1, step=draw, stream=_STREAM_RATE).squeeze(1)
        size = rows.eligible.sum(1)
        # Rounding up can turn the largest product into L itself.
        num_masked = (1 + (size * (draw + level) / self._num_draws).long()).clamp(max=size)
        keys = uniform(seeds, rows.ids.shape[1], step=draw, stream=_STREAM_CELLS)
        batch = _training_batch(
            rows, take_top(keys, num_masked, rows.eligible), self._layout, num_draws=self._num_draws
        )
        batch["likelihood_weight"] = size.to(torch.float64) / num_masked.clamp(min=1)
        return batch


class MLMPromptCollator:
    """Keeps the given tokens and masks all other cells, for generation.

    A target without ``fixed`` is a reference only: nothing of it is read but its length.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`MLMCollator`.
        target_length: W, cells of every row, so that the model decides the length; None for the length of the
            target.
        default_length: Length of examples without target, with target_length=None; None to refuse them.

    Raises:
        ValueError: If target_length is below 1, default_length is negative, or both are given.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        target_length: int | None = None,
        default_length: int | None = None,
    ) -> None:
        if default_length is not None and (target_length is not None or default_length < 0):
            raise ValueError(
                f"default_length must be at least 0, and None with a target_length, "
                f"got default_length={default_length} and target_length={target_length}"
            )
        self._layout = Layout(
            mask_id=mask_id, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length
        )
        self._default_length = default_length

    def __call__(self, examples: Sequence[Example]) -> MLMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If :meth:`MLMCollator.__call__` raises it, or the length of an example is unknown.
        """
        rows = self._layout.lay_out([self._with_length(example) for example in examples], only_given=True)
        return {
            "input_ids": rows.ids.masked_fill(rows.eligible, self._layout.mask_id),
            "attention_mask": rows.attention_mask,
            "masked": rows.eligible,
            "may_end": rows.may_end,
            "target_start": rows.target_start,
        }

    def _with_length(self, example: Example) -> Example:
        """The example, with a target of the right length if it has none and needs one."""
        if "target_ids" in example or self._layout.target_length is not None:
            return example
        if self._default_length is None:
            raise ValueError(
                "an example has no target_ids, so its length is unknown: give target_length, and the model "
                "decides the length, or default_length"
            )
        return {**example, "target_ids": torch.full((self._default_length,), self._layout.mask_id)}


def _training_batch(rows: Rows, masked: Tensor, layout: Layout, *, num_draws: int) -> MLMBatch:
    row, column = masked.nonzero(as_tuple=True)
    batch: MLMBatch = {
        "input_ids": rows.ids.masked_fill(masked, layout.mask_id),
        "attention_mask": None if bool(rows.attention_mask.all()) else rows.attention_mask,
        "target_ids": rows.ids,
        "masked": masked,
        "masked_row": row,
        "masked_column": column,
        "may_end": rows.may_end,
        "prompt_length": rows.target_start,
        "num_eligible": rows.eligible.sum(1),
        "num_tokens": rows.num_tokens,
        "models_length": torch.full((len(masked),), layout.target_length is not None),
        "num_draws": torch.tensor(num_draws),
    }
    if rows.segment_ids is not None:
        batch["segment_ids"] = rows.segment_ids
    return batch
