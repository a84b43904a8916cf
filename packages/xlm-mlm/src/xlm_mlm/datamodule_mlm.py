"""Collators: examples to batches. The noise of the masked language model, masking cells, lives here.

A row is ``prompt... [BOS] target...``. The columns of the target are its cells, in one of two layouts:

*Known length* (target_length=None): one cell for each target token. The model never sees another length than
the right one, so the length is given and not modelled.

*Fixed width* (target_length=W): W cells for each row. Those behind the text hold EOS and then PAD, up to the
full width; a text of W tokens fills the cells and needs no EOS. EOS and PAD are masked and predicted like
tokens, which is how length is modelled. Texts of 0 to W tokens and fillings of this form correspond one to
one.

Where the text may end: at the cells of a fixed width, but only right of the last given token. Nowhere else
are EOS and PAD possible tokens.

A text whose last token is given ends with it: the EOS and PADs behind it are given too.

A target of known length may be a block packed with several documents, whose own special tokens stand in it
already and are tokens like others: then bos_id=None and eos_id=None add none and forbid none. With
``segment_ids`` a token sees its own document only; the batch then holds the numbers of the documents, from
which the loss makes the mask of (length, length) on the device. Positions run on through the block: rotary
attention knows only the distance of two tokens, which within a document is the same as if they started again.

All randomness of a row comes from its seed, so a row looks the same in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import (
    NoiseSchedule,
    check_examples,
    places_of,
    seeds_of,
    stratified_times,
    take_top,
    uniform,
)
from xlm.modules.records import Example
from xlm_mlm.types_mlm import MLMBatch, MLMPromptBatch

_STREAM_RATE = 0
_STREAM_CELLS = 1
_NO_IDS = torch.empty(0, dtype=torch.int64)


class MLMCollator:
    """Masks cells at random, for the training loss and the likelihood.

    The mask rate of a row is t ~ U(0, 1) (Ghazvininejad et al. 2019, arXiv:1904.09324, draw the number of
    masks uniformly, which is the same distribution but for 0 masks), or 1 - alpha(t) of a noise schedule, or
    fixed; each cell that is not given is masked independently with this probability, always by MASK. Times
    are stratified over the training stream where the examples give their places in it; each rate has the
    same distribution either way.

    Args:
        pad_id: Id of PAD.
        mask_id: Id of MASK.
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
        pad_id: int,
        mask_id: int,
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
        self._layout = _Layout(
            pad_id=pad_id, mask_id=mask_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length
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
        pad_id: Id of PAD.
        mask_id: Id of MASK.
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
        pad_id: int,
        mask_id: int,
        bos_id: int | None,
        eos_id: int | None,
        target_length: int | None = None,
        num_draws: int = 1,
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        self._layout = _Layout(
            pad_id=pad_id, mask_id=mask_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length
        )
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> MLMBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: As :meth:`MLMCollator.__call__`.
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
    """Keeps what is given and masks all other cells, for generation.

    A target without ``fixed`` is a reference only: nothing of it is read but its length.

    Args:
        pad_id: Id of PAD.
        mask_id: Id of MASK.
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
        pad_id: int,
        mask_id: int,
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
        self._layout = _Layout(
            pad_id=pad_id, mask_id=mask_id, bos_id=bos_id, eos_id=eos_id, target_length=target_length
        )
        self._default_length = default_length

    def __call__(self, examples: Sequence[Example]) -> MLMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: As :meth:`MLMCollator.__call__`, or if the length of an example is unknown.
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


@dataclass(frozen=True)
class _Rows:
    """Rows without noise, padded on the right: (rows, length) each, and per-row values (rows,)."""

    ids: Tensor
    attention_mask: Tensor
    eligible: Tensor
    """True at cells that are not given."""
    may_end: Tensor
    segment_ids: Tensor | None
    """Of packed blocks: the document of each token, -1 at padding."""
    target_start: Tensor
    num_tokens: Tensor

    def repeat(self, times: int) -> "_Rows":
        """Each row ``times`` times in succession."""
        tables = {name: table for name, table in vars(self).items() if table is not None}
        return replace(self, **{name: table.repeat_interleave(times, 0) for name, table in tables.items()})


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a row stand."""

    pad_id: int
    mask_id: int
    bos_id: int | None
    eos_id: int | None
    target_length: int | None

    def __post_init__(self) -> None:
        if self.target_length is not None and self.target_length < 1:
            raise ValueError(f"target_length must be None or at least 1, got {self.target_length}")

    def lay_out(self, examples: Sequence[Example], *, only_given: bool = False) -> _Rows:
        """Prompt, BOS, target and filling of each example in one row.

        With ``only_given``, target tokens that are not given may have any id: they will not be read.
        """
        check_examples(examples)
        targets = [example.get("target_ids", _NO_IDS) for example in examples]
        prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
        text_length = torch.tensor([len(target) for target in targets])
        bos = _NO_IDS if self.bos_id is None else torch.tensor([self.bos_id])
        target_start = torch.tensor([len(prompt) + len(bos) for prompt in prompts])
        self._check_lengths(text_length)

        rows = [
            torch.cat((prompt, bos, target, self._filling(len(target))))
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        end = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        column = torch.arange(ids.shape[1])
        cells = (column >= target_start.unsqueeze(1)) & (column < end)
        text = cells & (column < (target_start + text_length).unsqueeze(1))
        given = _given(examples, target_start, ids.shape[1])
        self._check_tokens(ids, given if only_given else text)
        right_of_given = given.flip(1).cumsum(1).flip(1) == 0
        last_of_text = column == (target_start + text_length - 1).unsqueeze(1)
        end_is_given = (given & last_of_text).any(1, keepdim=True)
        fixed_width = self.target_length is not None
        bare = self.bos_id is None and not fixed_width
        return _Rows(
            ids=ids,
            attention_mask=column < end,
            eligible=torch.where(end_is_given, text, cells) & ~given,
            may_end=cells & right_of_given if fixed_width else torch.zeros_like(cells),
            segment_ids=_segment_ids(examples, bare=bare),
            target_start=target_start,
            num_tokens=(text & ~given).sum(1),
        )

    def _filling(self, text_length: int) -> Tensor:
        """EOS and PADs behind a text."""
        if self.target_length is None:
            return _NO_IDS
        filling = torch.full((self.target_length - text_length,), self.pad_id)
        if self.eos_id is not None:
            filling[:1] = self.eos_id
        return filling

    def _check_lengths(self, text_length: Tensor) -> None:
        longest = int(text_length.max())
        if self.target_length is not None and longest > self.target_length:
            raise ValueError(
                f"example {int(text_length.argmax())} has {longest} target tokens, the limit is "
                f"target_length={self.target_length}: leave such examples out, or raise the limit"
            )

    def _check_tokens(self, ids: Tensor, read: Tensor) -> None:
        special = [index for index in (self.mask_id, self.pad_id, self.eos_id) if index is not None]
        wrong = read & torch.isin(ids, torch.tensor(special))
        if wrong.any():
            row, column = wrong.nonzero()[0]
            token = int(ids[row, column])
            raise ValueError(
                f"the target of example {int(row)} holds token id {token}, which is MASK, PAD or EOS. Where "
                f"EOS separates texts inside a target, set eos_id=None in collators, loss and predictor"
            )


def _given(examples: Sequence[Example], target_start: Tensor, length: int) -> Tensor:
    """(rows, length) True at given target tokens."""
    given = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        if "fixed" not in example:
            continue
        fixed, size = example["fixed"], len(example.get("target_ids", _NO_IDS))
        if len(fixed) != size:
            raise ValueError(f"'fixed' of example {row} has {len(fixed)} entries for {size} target tokens")
        start = int(target_start[row])
        given[row, start : start + size] = fixed
    return given


def _segment_ids(examples: Sequence[Example], *, bare: bool) -> Tensor | None:
    """(rows, length) number of the document of each token, -1 at padding; None without packed blocks."""
    segments = [example["segment_ids"] for example in examples if "segment_ids" in example]
    if not segments:
        return None
    if len(segments) < len(examples):
        raise ValueError("some examples have 'segment_ids' and some have none: pack all of them")
    if not bare:
        raise ValueError(
            "a block with 'segment_ids' holds its special tokens already and has no end: set bos_id=None and "
            "target_length=None"
        )
    for number, (example, segment) in enumerate(zip(examples, segments, strict=True)):
        prompt, target = example.get("prompt_ids", _NO_IDS), example.get("target_ids", _NO_IDS)
        if len(prompt) > 0 or len(segment) != len(target):
            raise ValueError(
                f"example {number} needs one entry of 'segment_ids' for each target token, and no prompt"
            )
    return pad_sequence(segments, batch_first=True, padding_value=-1)


def _training_batch(rows: _Rows, masked: Tensor, layout: _Layout, *, num_draws: int) -> MLMBatch:
    row, column = masked.nonzero(as_tuple=True)
    batch: MLMBatch = {
        "input_ids": rows.ids.masked_fill(masked, layout.mask_id),
        "attention_mask": None if bool(rows.attention_mask.all()) else rows.attention_mask,
        "target_ids": rows.ids,
        "masked": masked,
        "masked_row": row,
        "masked_column": column,
        "may_end": rows.may_end,
        "num_eligible": rows.eligible.sum(1),
        "num_tokens": rows.num_tokens,
        "models_length": torch.full((len(masked),), layout.target_length is not None),
        "num_draws": torch.tensor(num_draws),
    }
    if rows.segment_ids is not None:
        batch["segment_ids"] = rows.segment_ids
    return batch
