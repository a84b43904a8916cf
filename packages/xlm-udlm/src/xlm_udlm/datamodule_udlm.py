"""Collators: examples to batches. The forward process of the diffusion, noising cells, lives here.

A row is ``prompt... [BOS] target...``; only cells that are not given are noised, to a token drawn uniformly
from those that are possible there, which may be the old one. The layout of the tokens is described in
:mod:`xlm_udlm.layout_udlm`. All randomness of a row comes from its seed (and, for stratified times, its place
in the training stream), so a row looks the same in every batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xlm.modules import (
    NoiseSchedule,
    check_vocabulary,
    places_of,
    require,
    seeds_of,
    stratified_times,
    uniform,
)
from xlm.modules.records import Example
from xlm_udlm.curriculum_udlm import GaussianCurriculum
from xlm_udlm.layout_udlm import Layout, Rows
from xlm_udlm.types_udlm import UDLMBatch, UDLMPromptBatch, noise_of_alpha, one_minus_alpha
from xlm_udlm.vocabulary_udlm import CellVocabulary

_STREAM_TIME = 0
_STREAM_CELLS = 1
_STREAM_NOISE = 2
_LIKELIHOOD_POWER = 3


class UDLMCollator:
    """Draws a time for each row and noises its cells with the probability of that time, for training.

    t = min_time + (1 - min_time) s^q with s ~ U(0, 1); each cell that is not given is noised independently
    with probability 1 - alpha(t), and the row weighs -alpha'(t) / alpha(t) * q s^(q-1) (1 - min_time): the
    last factors are one over the density of t, so that q does not change the expectation. Times are
    stratified over the training stream where the examples give their places in it.

    Args:
        schedule: alpha. Any of :mod:`xlm.modules.schedules`; those that are not complete train on another
            objective than the bound, as their times do not cover all noise levels.
        vocab_size: Number of ids, that of the network's logits.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS; None for no EOS: then PAD alone fills a fixed width, and a token that separates
            texts inside a target is like any other.
        suppressed_ids: Ids that never stand in a text, such as MASK and BOS; nothing is noised to them.
        target_length: W, cells of every row; None for as many as the target has tokens.
        min_time: Where the times begin, in [0, 1). Noise near t = 0 is rare and expensive: a cut at 1e-3
            leaves out about half a per cent of the integral, far more than with masks.
        time_power: q, at least 1. The published 1 has infinite variance with min_time=0; 3 has the least.
        curriculum: Softens the first rows of the training stream, whose loss is biased then; None for none.

    Raises:
        ValueError: If an option is outside its range, or no token is possible in a text, or only one with a
            curriculum.
    """

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        vocab_size: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        target_length: int | None = None,
        min_time: float = 0.0,
        time_power: float = 3.0,
        curriculum: GaussianCurriculum | None = None,
    ) -> None:
        require(0 <= min_time < 1, "min_time", min_time, "in [0, 1)")
        require(time_power >= 1, "time_power", time_power, "at least 1")
        self._schedule = schedule
        self._rows = _RowMaker(
            vocab_size=vocab_size,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            suppressed_ids=suppressed_ids,
            target_length=target_length,
        )
        self._min_time, self._time_power = min_time, time_power
        if curriculum is not None:
            num_text = self._rows.vocabulary.num_text
            require(num_text >= 2, "curriculum", curriculum, "None where texts have one possible token")
        self._curriculum = curriculum

    def __call__(self, examples: Sequence[Example]) -> UDLMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than target_length or has a token that
                its cell cannot hold, or ``fixed`` or ``segment_ids`` do not fit their target.
        """
        rows = self._rows.lay_out(examples)
        seeds, power, places = seeds_of(examples), self._time_power, places_of(examples)
        s = stratified_times(seeds, places, stream=_STREAM_TIME)
        time = self._min_time + (1 - self._min_time) * s**power
        alpha = self._schedule.alpha(time)
        weight = -self._schedule.d_alpha(time) / alpha * power * s ** (power - 1) * (1 - self._min_time)
        batch = self._rows.noised(
            rows,
            seeds,
            step=0,
            noised=one_minus_alpha(self._schedule, time),
            # Nothing is left of the text at alpha = 0, where F = 0.
            weight=weight.masked_fill(alpha <= 0, 0.0),
            noise=noise_of_alpha(alpha),
        )
        if self._curriculum is None:
            return batch
        is_soft = torch.ones(len(s), dtype=torch.bool)
        if places is not None:
            is_soft = places < self._curriculum.num_rows
        return self._softened(self._curriculum, batch, rows, seeds, s, is_soft) if is_soft.any() else batch

    def _softened(
        self,
        curriculum: GaussianCurriculum,
        batch: UDLMBatch,
        rows: Rows,
        seeds: Tensor,
        s: Tensor,
        is_soft: Tensor,
    ) -> UDLMBatch:
        """The batch with the noise of the curriculum in the rows (rows,) ``is_soft``.

        Raises:
            ValueError: If the cells of a row have different numbers of possible tokens.
        """
        vocabulary, row, column = self._rows.vocabulary, batch["cell_row"], batch["cell_column"]
        number = vocabulary.num_possible(rows.may_end)
        least = number.masked_fill(~rows.free, vocabulary.vocab_size).amin(1)
        most = number.masked_fill(~rows.free, 2).amax(1)
        if bool((least < most)[is_soft].any()):
            raise ValueError(
                "with a curriculum all free cells of a row must have the same possible tokens; EOS is "
                "possible right of the last given token only: set the collator's curriculum=null"
            )
        levels = curriculum.levels(s, most)
        soft = curriculum.draw(vocabulary, seeds, rows.ids, rows.may_end, levels.mu)
        noised = levels.one_minus_alpha
        found: UDLMBatch = {
            **batch,
            "input_ids": soft.largest.where(rows.free & is_soft.unsqueeze(1), batch["input_ids"]),
            "one_minus_alpha": noised.where(is_soft, batch["one_minus_alpha"]),
            "weight": levels.weight.where(is_soft, batch["weight"]),
            "noise": noise_of_alpha(1 - noised).where(is_soft, batch["noise"]),
        }
        if soft.weights is not None:
            of_cell, own = is_soft[row].unsqueeze(1), found["input_ids"][row, column].unsqueeze(1)
            hard = torch.zeros_like(soft.weights[row, column])
            hard[:, 0] = 1.0
            found["blend_ids"] = soft.ids[row, column].where(of_cell, own)
            found["blend_weights"] = soft.weights[row, column].where(of_cell, hard).float()
        return found


class UDLMLikelihoodCollator:
    """Noises cells so that the likelihood bound is estimated without bias, over all times from 0 to 1.

    1 - alpha = s^3 with s ~ U(0, 1), the weight is 3 s^2 / alpha, and the time is the one at which the
    schedule reaches that alpha: for a network conditioned on alpha the schedule cancels.

    Args:
        schedule: That of the training, which decides how much noise the network knows: an alpha below its
            alpha(1) is passed as alpha(1).
        vocab_size: Number of ids, that of the network's logits.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`UDLMCollator`.
        suppressed_ids: Ids that never stand in a text.
        target_length: W, cells of every row; None for as many as the target has tokens.
        num_draws: Number of consecutive rows made from each example. Their s are stratified: draw k of n
            takes s = (k + u_k) / n with u_k ~ U(0, 1), so the mean over the draws of any function of the row
            is unbiased and varies less than with independent draws.

    Raises:
        ValueError: If an option is outside its range, or the schedule is not complete.
    """

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        vocab_size: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        target_length: int | None = None,
        num_draws: int = 1,
    ) -> None:
        require(num_draws >= 1, "num_draws", num_draws, "at least 1")
        if not schedule.is_complete:
            raise ValueError(
                f"the likelihood needs a schedule with alpha(0) = 1 and alpha(1) = 0, got {schedule}: "
                f"otherwise the network has not been trained at all noise levels"
            )
        self._schedule = schedule
        self._rows = _RowMaker(
            vocab_size=vocab_size,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            suppressed_ids=suppressed_ids,
            target_length=target_length,
        )
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> UDLMBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: If :meth:`UDLMCollator.__call__` raises it.
        """
        rows = self._rows.lay_out(examples).repeat(self._num_draws)
        seeds = seeds_of(examples).repeat_interleave(self._num_draws)
        draw = torch.arange(len(seeds)) % self._num_draws
        s = (draw + uniform(seeds, 1, step=draw, stream=_STREAM_TIME).squeeze(1)) / self._num_draws
        noised = s**_LIKELIHOOD_POWER
        alpha = 1 - noised
        time = self._schedule.inverse(alpha).clamp(max=1.0)
        batch = self._rows.noised(
            rows,
            seeds,
            step=draw,
            noised=noised,
            weight=(_LIKELIHOOD_POWER * s ** (_LIKELIHOOD_POWER - 1) / alpha).masked_fill(alpha <= 0, 0.0),
            noise=noise_of_alpha(self._schedule.alpha(time)),
        )
        batch["num_draws"] = torch.tensor(self._num_draws)
        return batch


class UDLMPromptCollator:
    """Keeps the given tokens and leaves all other cells open, for generation.

    A target without ``fixed`` is a reference only: nothing of it is read but its length.

    Args:
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none, as for packed blocks.
        eos_id: Id of EOS or None, as in :class:`UDLMCollator`.
        target_length: W, cells of every row, so that the model decides the length; None for the length of the
            target.
        default_length: Length of examples without target, with target_length=None; None to refuse them.

    Raises:
        ValueError: If target_length is below 1, default_length is negative, or both are given.
    """

    def __init__(
        self,
        *,
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
        self._layout = Layout(pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length)
        self._default_length = default_length

    def __call__(self, examples: Sequence[Example]) -> UDLMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If the layout refuses an example, or the length of one is unknown.
        """
        rows = self._layout.lay_out([self._with_length(example) for example in examples], only_given=True)
        return {
            "input_ids": rows.ids.masked_fill(rows.free, self._layout.pad_id),
            "attention_mask": rows.attention_mask,
            "free": rows.free,
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
        return {**example, "target_ids": torch.full((self._default_length,), self._layout.pad_id)}


class _RowMaker:
    """Rows of examples and their noised versions, for both collators of the loss."""

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_id: int,
        bos_id: int | None,
        eos_id: int | None,
        suppressed_ids: Sequence[int],
        target_length: int | None,
    ) -> None:
        self._layout = Layout(pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length)
        self.vocabulary = CellVocabulary(
            vocab_size=vocab_size, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )

    def lay_out(self, examples: Sequence[Example]) -> Rows:
        """Rows without noise, whose free cells hold tokens that are possible there."""
        rows = self._layout.lay_out(examples)
        check_vocabulary(rows.ids, self.vocabulary.vocab_size)
        impossible = rows.free & ~self.vocabulary.are_possible(rows.ids, rows.may_end)
        if impossible.any():
            row, column = impossible.nonzero()[0].tolist()
            raise ValueError(
                f"the target of example {row} holds token id {int(rows.ids[row, column])}, which is one of "
                f"suppressed_ids: its loss would be infinite"
            )
        return rows

    def noised(
        self, rows: Rows, seeds: Tensor, *, step: int | Tensor, noised: Tensor, weight: Tensor, noise: Tensor
    ) -> UDLMBatch:
        """The rows with each free cell noised with the probability ``noised`` (rows,) of its row."""
        width = rows.ids.shape[1]
        chosen = uniform(seeds, width, step=step, stream=_STREAM_CELLS) < noised.unsqueeze(1)
        uniforms = uniform(seeds, width, step=step, stream=_STREAM_NOISE)
        random = self.vocabulary.uniform_tokens(uniforms, rows.may_end)
        row, column = rows.free.nonzero(as_tuple=True)
        batch: UDLMBatch = {
            "input_ids": random.where(rows.free & chosen, rows.ids),
            "attention_mask": None if bool(rows.attention_mask.all()) else rows.attention_mask,
            "target_ids": rows.ids,
            "cell_row": row,
            "cell_column": column,
            "may_end": rows.may_end,
            "one_minus_alpha": noised,
            "weight": weight,
            "noise": noise,
            "num_free": rows.free.sum(1),
            "num_tokens": rows.num_tokens,
            "models_length": torch.full((len(seeds),), self._layout.target_length is not None),
        }
        if rows.segment_ids is not None:
            batch["segment_ids"] = rows.segment_ids
        return batch
