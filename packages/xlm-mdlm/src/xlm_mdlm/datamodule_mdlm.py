"""Collators: examples to batches. The forward process of the diffusion, masking cells, lives here.

A row is ``prompt... [BOS] target...``; only cells that are not given are masked. The layout of its tokens is
described in :mod:`xlm_mdlm.layout_mdlm`. All randomness of a row comes from its seed (and, for stratified
times, its place in the training stream), so a row looks the same in every batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, places_of, seeds_of, stratified_times, take_top, uniform
from xlm.modules.records import Example
from xlm_mdlm.layout_mdlm import Layout, Rows
from xlm_mdlm.types_mdlm import MDLMBatch, MDLMPromptBatch, noise_of_alpha

_STREAM_TIME = 0
_STREAM_CELLS = 1


class MDLMCollator:
    """Draws a time for each row and masks its cells with the probability of that time, for the training loss.

    t = min_time + (1 - min_time) u with u ~ U(0, 1); each cell that is not given is masked independently with
    probability 1 - alpha(t), and the row weighs -alpha'(t) / (1 - alpha(t)) (Sahoo et al. 2024,
    arXiv:2406.07524, section 3). Times are stratified over the training stream where the examples give their
    places in it; a single time has the same distribution either way.

    Args:
        schedule: alpha. Any of :mod:`xlm.modules.schedules`; those that are not complete train on another
            objective than the bound, as their times do not cover all mask probabilities.
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS; None for no EOS: then PAD alone fills a fixed width, and a token that separates
            texts inside a target is like any other.
        target_length: W, cells of every row; None for as many as the target has tokens.
        min_time: Where the times begin, in [0, 1). The weight grows like 1/t towards 0, where masks are few:
            0 gives the bound without bias but gradients of unbounded variance; the published 1e-3 leaves out
            about 0.1 per cent of the integral.

    Raises:
        ValueError: If target_length or min_time is outside its range.
    """

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        target_length: int | None = None,
        min_time: float = 1e-3,
    ) -> None:
        if not 0 <= min_time < 1:
            raise ValueError(f"min_time must be in [0, 1), got {min_time}")
        self._schedule = schedule
        self._layout = Layout(
            mask_id=mask_id,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            target_length=target_length,
        )
        self._min_time = min_time

    def __call__(self, examples: Sequence[Example]) -> MDLMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than target_length or holds MASK, PAD or
                EOS, or ``fixed`` or ``segment_ids`` do not fit their target.
        """
        rows = self._layout.lay_out(examples)
        seeds = seeds_of(examples)
        drawn = stratified_times(seeds, places_of(examples), stream=_STREAM_TIME)
        time = self._min_time + (1 - self._min_time) * drawn
        alpha = self._schedule.alpha(time)
        keys = uniform(seeds, rows.ids.shape[1], step=0, stream=_STREAM_CELLS)
        masked = rows.eligible & (keys >= alpha.unsqueeze(1))
        batch = _training_batch(rows, self._layout, masked=masked, weight=self._schedule.loss_weight(time))
        batch["noise"] = noise_of_alpha(alpha)
        return batch


class MDLMLikelihoodCollator:
    """Masks cells so that the likelihood bound is estimated without bias, independent of the training times.

    For a network that is not conditioned on time: of L cells that are not given n ~ U{1..L} are masked, all
    sets of n being equally likely; the weight is L/n. For one that is: each cell is masked with probability u
    ~ U(0, 1), the weight is 1/u, and the time is the one at which the schedule reaches alpha = 1 - u.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`MDLMCollator`.
        target_length: W, cells of every row; None for as many as the target has tokens.
        time_conditioning: Whether the network is conditioned on the time.
        schedule: That of the training, for a network conditioned on time; not used otherwise.
        num_draws: K, the number of consecutive rows made from each example. Their n or u are stratified: draw
            k takes the quantile (k + u_k) / K with u_k ~ U(0, 1), so the mean over the draws of any function
            of the row is unbiased and varies less than with independent draws.

    Raises:
        ValueError: If target_length or num_draws is below 1, or a network conditioned on time has no schedule
            or one that is not complete.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        target_length: int | None = None,
        time_conditioning: bool = False,
        schedule: NoiseSchedule | None = None,
        num_draws: int = 1,
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        if time_conditioning and (schedule is None or not schedule.is_complete):
            raise ValueError(
                f"the likelihood of a network conditioned on the time needs a schedule with alpha(0) = 1 and "
                f"alpha(1) = 0, got {schedule}: otherwise the network has not been trained at all mask "
                f"probabilities, and its samples do not start from masks alone"
            )
        self._schedule = schedule if time_conditioning else None
        self._layout = Layout(
            mask_id=mask_id,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            target_length=target_length,
        )
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> MDLMBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: If :meth:`MDLMCollator.__call__` raises it.
        """
        rows = self._layout.lay_out(examples).repeat(self._num_draws)
        seeds = seeds_of(examples).repeat_interleave(self._num_draws)
        draw = torch.arange(len(seeds)) % self._num_draws
        quantile = (draw + uniform(seeds, 1, step=draw, stream=_STREAM_TIME).squeeze(1)) / self._num_draws
        keys = uniform(seeds, rows.ids.shape[1], step=draw, stream=_STREAM_CELLS)
        batch = (
            self._by_number(rows, quantile, keys)
            if self._schedule is None
            else self._by_time(self._schedule, rows, quantile, keys)
        )
        batch["num_draws"] = torch.tensor(self._num_draws)
        return batch

    def _by_number(self, rows: Rows, quantile: Tensor, keys: Tensor) -> MDLMBatch:
        size = rows.eligible.sum(1)
        # Rounding up can turn the largest product into L itself.
        num_masked = (1 + (size * quantile).long()).clamp(max=size)
        masked = take_top(keys, num_masked, rows.eligible)
        weight = size.to(torch.float64) / num_masked.clamp(min=1)
        return _training_batch(rows, self._layout, masked=masked, weight=weight)

    def _by_time(self, schedule: NoiseSchedule, rows: Rows, quantile: Tensor, keys: Tensor) -> MDLMBatch:
        masked = rows.eligible & (keys < quantile.unsqueeze(1))
        batch = _training_batch(rows, self._layout, masked=masked, weight=1 / quantile)
        # An alpha below that of t = 1 is passed as t = 1, which training goes up to.
        time = schedule.inverse(1 - quantile).clamp(max=1.0)
        batch["noise"] = noise_of_alpha(schedule.alpha(time))
        return batch


# Copied from xlm_mlm.datamodule_mlm.MLMPromptCollator
class MDLMPromptCollator:
    """Keeps the given tokens and masks all other cells, for generation.

    A target without ``fixed`` is a reference only: nothing of it is read but its length.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`MDLMCollator`.
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

    def __call__(self, examples: Sequence[Example]) -> MDLMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If :meth:`MDLMCollator.__call__` raises it, or the length of an example is unknown.
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


def _training_batch(rows: Rows, layout: Layout, *, masked: Tensor, weight: Tensor) -> MDLMBatch:
    """The rows with MASK at the ``masked`` cells (rows, length), and the ``weight`` (rows,) of each."""
    row, column = masked.nonzero(as_tuple=True)
    batch: MDLMBatch = {
        "input_ids": rows.ids.masked_fill(masked, layout.mask_id),
        "attention_mask": None if bool(rows.attention_mask.all()) else rows.attention_mask,
        "target_ids": rows.ids,
        "masked": masked,
        "masked_row": row,
        "masked_column": column,
        "may_end": rows.may_end,
        "prompt_length": rows.target_start,
        "weight": weight,
        "num_eligible": rows.eligible.sum(1),
        "num_tokens": rows.num_tokens,
        "models_length": torch.full((len(masked),), layout.target_length is not None),
    }
    if rows.segment_ids is not None:
        batch["segment_ids"] = rows.segment_ids
    return batch
