"""Inference: all cells start masked, and each step fills some of them, until no mask is left.

    while masked.any():
        logits = network(x)
        scores = rand(masked.shape)                           # or confidence(logits): the most confident
        first cells = rule.choose(scores, masked)                   # how many
        x[cells] = draw(logits[cells])                        # independently of each other
        masked = masked & ~cells

A step evaluates the network once, on the rows that still have masks, and chooses cells by an order and a rule
(:mod:`xlm_mlm.unmasking_mlm`). Filled cells never change. In a random order the cells are chosen first, and
logits are computed for them only; by confidence, for all masked cells.

The draws of a row depend on its seed, the step and the cell only, so that it comes out the same in any batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import TokenSampling, confidence, require, uniform
from xlm.modules.records import INSERT, WRITE, Prediction, Trace, TracedPrediction, edits_of_step
from xlm_mlm.types_mlm import (
    MLMNetwork,
    MLMPromptBatch,
    call_model,
)
from xlm_mlm.unmasking_mlm import CERTAIN, Counts, MaxUncertainty, MinConfidence, Order, Rule, Schedule
from xlm_mlm.vocabulary_mlm import CellVocabulary

_STREAM_ORDER = 0
_STREAM_TOKEN = 1


class MLMPredictor:
    """Iterative unmasking (Mask-Predict without remasking; Ghazvininejad et al. 2019, arXiv:1904.09324).

    One cell per step (num_steps=None) in random order at temperature 1 without filters draws from the
    distribution p(x) = E_s p(x | s) of :meth:`xlm_mlm.MLMLoss.likelihood`. Several cells per step ignore
    their dependence, for fewer evaluations of the network. Call it with the network in evaluation mode:
    dropout is the one thing that the seeds do not govern.

    At most one of num_steps, min_confidence and max_uncertainty is given; without any, each step fills one
    cell.

    Args:
        mask_id: Id of MASK, which is never drawn.
        pad_id: Id of PAD, drawn only where the text may end; also fills the rows of the result.
        eos_id: Id of EOS, drawn only where the text may end; None if EOS, if there is
            one, is a token like any other.
        suppressed_ids: Further ids that are never drawn: those of the loss.
        num_steps: The most evaluations for a row; one with fewer masks takes one evaluation per mask.
        schedule: How the masks of a row are divided among num_steps: "uniform", "cosine" (few first) or
            "sine" (many first), see :class:`xlm_mlm.unmasking_mlm.Counts`.
        min_confidence: Each step fills every cell whose confidence is above this; in [0, 1), or below 0 for
            order="entropy", in nats.
        max_uncertainty: Each step fills the most confident cells while the uncertainties of those before them
            add up to less than this, see :class:`xlm_mlm.unmasking_mlm.MaxUncertainty`; greater than 0.
        order: Which cells come first. "random"; or the most confident first, by the
            distribution at temperature 1: "top_prob", the largest probability (Chang et al. 2022,
            arXiv:2202.04200); "margin", the largest less the second (Kim et al. 2025, arXiv:2502.06768);
            "entropy", sum p log p.
        temperature: Of the tokens, at least 0; 0 takes the most probable.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.

    Raises:
        ValueError: If an option is outside its range, or options exclude each other.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        num_steps: int | None = None,
        schedule: Schedule = "uniform",
        min_confidence: float | None = None,
        max_uncertainty: float | None = None,
        order: Order = "random",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        require(order in ("random", *CERTAIN), "order", order, "'random', 'top_prob', 'margin' or 'entropy'")
        self._vocabulary = CellVocabulary(
            mask_id=mask_id, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._pad_id = pad_id
        self._order: Order = order
        self._rule = _make_rule(order, num_steps, schedule, min_confidence, max_uncertainty)
        self._sampling = TokenSampling(temperature, top_k, top_p)

    @overload
    def __call__(
        self, model: MLMNetwork, batch: MLMPromptBatch, seeds: Tensor, *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: MLMNetwork, batch: MLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self, model: MLMNetwork, batch: MLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_mlm.MLM.forward`.
            batch: The given parts and masks, from :class:`xlm_mlm.MLMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits.

        Returns:
            The targets, up to the first EOS or PAD where the text may end. Edits of step 0 insert the cells
            of the final text, MASK at those that are not given; later ones write over the masks.
        """
        text = _Text.start(batch)
        edits: list[Tensor] = []
        nfe = torch.zeros_like(seeds)
        step = 0
        rows = text.unfinished(torch.arange(len(seeds), device=seeds.device))
        while len(rows) > 0:
            step += 1
            nfe[rows] += 1
            chosen, tokens = self._step(model, text.window(rows), seeds[rows], step)
            row, column = chosen.nonzero(as_tuple=True)
            text.write(rows[row], column, tokens)
            edits.append(edits_of_step(step, WRITE, rows[row], column - text.target_start[rows[row]], tokens))
            rows = text.unfinished(rows)
        ids, lengths = text.targets(self._vocabulary, self._pad_id)
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None)
        start = text.start_edits(batch["input_ids"], lengths)
        # Cells behind the end of the final text do not appear.
        inside = [table[:, table[3] < lengths[table[1]]] for table in (start, *edits)]
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=Trace.of(inside))

    def _step(self, model: MLMNetwork, window: "_Window", seeds: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The cells to fill (rows, length), and their tokens (cells,) in row-major order."""
        length = window.masked.shape[1]
        if self._order == "random":
            scores = uniform(seeds, length, step=step, stream=_STREAM_ORDER)
            chosen = self._rule.choose(scores, window.masked, window.num_start, step)
            logits = self._logits(model, window, chosen)
        else:
            all_logits = self._logits(model, window, window.masked)
            certainty = confidence(all_logits, self._order)
            scores = certainty.new_full(window.masked.shape, -math.inf)
            scores[window.masked] = certainty
            chosen = self._rule.choose(scores, window.masked, window.num_start, step)
            logits = all_logits[chosen[window.masked]]
        uniforms = uniform(seeds, length, step=step, stream=_STREAM_TOKEN)[chosen]
        return chosen, self._sampling.draw(logits, uniforms)

    def _logits(self, model: MLMNetwork, window: "_Window", wanted: Tensor) -> Tensor:
        """(cells, vocab) logits of the wanted cells (rows, length), -inf at impossible tokens."""
        cells = wanted.flatten().nonzero().squeeze(1)
        logits = call_model(model, window.input_ids, window.attention_mask, positions=cells)
        return self._vocabulary.restrict(logits, window.may_end[wanted])


@dataclass(frozen=True)
class _Window:
    """Some rows as they are before a step, (rows, length) each, as wide as the longest of them."""

    input_ids: Tensor
    attention_mask: Tensor
    masked: Tensor
    may_end: Tensor
    num_start: Tensor
    """(rows,) masks before the first step."""


@dataclass(frozen=True)
class _Text:
    """All rows while they are filled, (rows, length) each."""

    input_ids: Tensor
    attention_mask: Tensor
    masked: Tensor
    may_end: Tensor
    target_start: Tensor
    """(rows,) first cell."""
    num_start: Tensor
    """(rows,) masks before the first step."""

    @staticmethod
    def start(batch: MLMPromptBatch) -> "_Text":
        return _Text(
            input_ids=batch["input_ids"].clone(),
            attention_mask=batch["attention_mask"],
            masked=batch["masked"].clone(),
            may_end=batch["may_end"],
            target_start=batch["target_start"],
            num_start=batch["masked"].sum(1),
        )

    def unfinished(self, rows: Tensor) -> Tensor:
        """Those of the ``rows`` that have masks."""
        return rows[self.masked[rows].any(1)]

    def window(self, rows: Tensor) -> _Window:
        """The rows, without columns that are padding in all of them."""
        width = int(self.attention_mask[rows].sum(1).max())
        return _Window(
            input_ids=self.input_ids[rows, :width],
            attention_mask=self.attention_mask[rows, :width],
            masked=self.masked[rows, :width],
            may_end=self.may_end[rows, :width],
            num_start=self.num_start[rows],
        )

    def write(self, row: Tensor, column: Tensor, token: Tensor) -> None:
        """Fill masked cells."""
        self.input_ids[row, column] = token
        self.masked[row, column] = False

    def targets(self, vocabulary: CellVocabulary, pad_id: int) -> tuple[Tensor, Tensor]:
        """The texts (rows, width), padded on the right, and their lengths (rows,)."""
        ended = self.may_end & vocabulary.ends(self.input_ids)
        text = self._cells() & (ended.cumsum(1) == 0)
        lengths = text.sum(1)
        row, column = text.nonzero(as_tuple=True)
        ids = self.input_ids.new_full((len(lengths), int(lengths.max()) if len(lengths) > 0 else 0), pad_id)
        ids[row, column - self.target_start[row]] = self.input_ids[row, column]
        return ids, lengths

    def start_edits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Insertions that build the start, ``input_ids``, of every text from left to right."""
        place = torch.arange(input_ids.shape[1], device=lengths.device) - self.target_start.unsqueeze(1)
        row, column = (self._cells() & (place < lengths.unsqueeze(1))).nonzero(as_tuple=True)
        return edits_of_step(0, INSERT, row, place[row, column], input_ids[row, column])

    def _cells(self) -> Tensor:
        """(rows, length) True at the cells."""
        column = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return self.attention_mask & (column >= self.target_start.unsqueeze(1))


def _make_rule(
    order: Order,
    num_steps: int | None,
    schedule: Schedule,
    min_confidence: float | None,
    max_uncertainty: float | None,
) -> Rule:
    require(num_steps is None or num_steps >= 1, "num_steps", num_steps, "None or at least 1")
    require(schedule in ("uniform", "cosine", "sine"), "schedule", schedule, "'uniform', 'cosine' or 'sine'")
    if min_confidence is None and max_uncertainty is None:
        return Counts(num_steps, schedule)
    if order == "random":
        raise ValueError("min_confidence and max_uncertainty need an order by confidence, not order='random'")
    if num_steps is not None or schedule != "uniform" or None not in (min_confidence, max_uncertainty):
        raise ValueError(
            f"min_confidence, max_uncertainty and num_steps with its schedule exclude each other: each sets "
            f"how many cells a step fills; got {min_confidence}, {max_uncertainty}, {num_steps} and "
            f"{schedule!r}"
        )
    certain = CERTAIN[order]
    if min_confidence is not None:
        in_range = min_confidence < 0 if order == "entropy" else 0 <= min_confidence < 1
        allowed = "below 0 with order='entropy'" if order == "entropy" else "in [0, 1)"
        require(in_range, "min_confidence", min_confidence, allowed)
        return MinConfidence(min_confidence)
    assert max_uncertainty is not None
    require(max_uncertainty > 0, "max_uncertainty", max_uncertainty, "greater than 0")
    return MaxUncertainty(max_uncertainty, certain)
