"""Inference: a row is written by inserting tokens until the stop head, or a limit, ends it.

    while len(x) < limit:
        token_logits, stop_logits = network(x)                # (slots, vocab) and (classes,)
        if stops(softmax(stop_logits)[0]):
            break
        slot, token = draw(token_logits)                      # from one softmax over all slots and tokens
        x = [*x[: slot + 1], token, *x[slot + 1 :]]

A step evaluates the network once, on the unfinished rows. From the same evaluation each row first
decides whether to stop, and otherwise inserts. A new token is appended to the row's buffer at the row's own
length, with the position right of its slot, and the positions of the tokens on its right grow by one: nothing
moves in memory, and the text is read off the positions at the end.

The draws of a row depend on its seed, the step and the purpose only, so it comes out the same in any batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from jaxtyping import Int
from torch import Tensor, nn

from xlm.modules import (
    Columns,
    PromptCache,
    TokenSampling,
    logits_in_pieces,
    prompt_sees_target,
    require,
    suppress_tokens,
    uniform,
)
from xlm.modules.records import INSERT, Prediction, Trace, TracedPrediction, edits_of_step
from xlm_ilm.types_ilm import (
    ILMNetwork,
    ILMPromptBatch,
    call_model,
    prompt_of,
)

_STREAM_STOP = 0
_STREAM_INSERT = 1


class ILMPredictor:
    """Sampler of the insertion language model (Patel et al. 2025, arXiv:2505.05755, section 3).

    The distribution that the likelihood of :class:`xlm_ilm.ILMLoss` belongs to is that of ``stop="draw"``
    without temperatures and filters and with one insertion per step. Call it with the network in evaluation
    mode: dropout is the one thing that the seeds do not govern.

    Args:
        pad_id: Id that fills the rows of the result.
        suppressed_ids: Token ids that are never inserted: those of the loss.
        max_new_tokens: The most tokens to insert; None for the budget that the batch gives each row.
        stop: "threshold": a row stops when P(stop) >= stop_threshold, as published. "draw": it stops with
            probability P(stop), the distribution that the network is trained for.
        stop_threshold: In (0, 1]. Only read with stop="threshold". Usual is 0.9, and 0.5 with a length head.
        stop_temperature: Divides the stop logits, greater than 0.
        sampling: "joint": slot and token are drawn together. "two_stage": first the slot from its marginal
            probability, then the token given the slot. Without temperatures and filters this is the same
            distribution.
        temperature: Of the joint distribution, or of the token given the slot; at least 0, where 0 takes the
            most probable.
        top_k: Pairs, or tokens given the slot, to choose from; None for all.
        top_p: Mass of the pairs, or tokens given the slot, to choose from; None for all.
        slot_temperature: Of the slot with sampling="two_stage"; at least 0.
        slot_top_k: Slots to choose from with sampling="two_stage"; None for all.
        slot_top_p: Mass of the slots to choose from with sampling="two_stage"; None for all.
        insertions_per_step: Tokens to insert per evaluation, into distinct slots: each next one is drawn in
            the same way from the slots that remain.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        suppressed_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
        stop: Literal["threshold", "draw"] = "threshold",
        stop_threshold: float = 0.9,
        stop_temperature: float = 1.0,
        sampling: Literal["joint", "two_stage"] = "joint",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        slot_temperature: float = 1.0,
        slot_top_k: int | None = None,
        slot_top_p: float | None = None,
        insertions_per_step: int = 1,
    ) -> None:
        slot_options = (slot_temperature, slot_top_k, slot_top_p)
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        require(stop in ("threshold", "draw"), "stop", stop, "'threshold' or 'draw'")
        require(0 < stop_threshold <= 1, "stop_threshold", stop_threshold, "in (0, 1]")
        require(stop_temperature > 0, "stop_temperature", stop_temperature, "greater than 0")
        require(sampling in ("joint", "two_stage"), "sampling", sampling, "'joint' or 'two_stage'")
        require(
            sampling == "two_stage" or slot_options == (1.0, None, None),
            "slot_temperature, slot_top_k, slot_top_p",
            slot_options,
            "left out with sampling='joint', which draws slot and token together",
        )
        require(insertions_per_step >= 1, "insertions_per_step", insertions_per_step, "at least 1")
        self._pad_id = pad_id
        self._suppressed_ids = list(suppressed_ids)
        self._max_new_tokens = max_new_tokens
        self._stop = stop
        self._stop_threshold = stop_threshold
        self._stop_temperature = stop_temperature
        self._sampling = sampling
        self._token_sampling = TokenSampling(temperature, top_k, top_p)
        self._slot_sampling = TokenSampling(slot_temperature, slot_top_k, slot_top_p, prefix="slot_")
        if sampling == "joint" and temperature == 0:
            # The most probable pair is in the slot with the most probable token.
            self._slot_sampling = TokenSampling(0.0)
        self._insertions_per_step = insertions_per_step

    @overload
    def __call__(
        self, model: ILMNetwork, batch: ILMPromptBatch, seeds: Int[Tensor, " rows"], *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: ILMNetwork, batch: ILMPromptBatch, seeds: Int[Tensor, " rows"], *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self, model: ILMNetwork, batch: ILMPromptBatch, seeds: Int[Tensor, " rows"], *, trace: bool = False
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_ilm.ILM.forward`.
            batch: The given parts, from :class:`xlm_ilm.ILMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the insertions.

        Returns:
            The targets. A row that reaches its limit, or has no open slot, keeps what it has.
        """
        prompt = torch.zeros_like(batch["attention_mask"])
        prompts = None
        if not prompt_sees_target(model):
            prompt = prompt_of(batch)
            prompts = _read_prompts(model, batch, prompt)
        text = _Text.start(batch, prompt, self._max_new_tokens)
        edits = [text.given_edits()]
        nfe = torch.zeros_like(seeds)
        step = 0
        # Rows without budget or slot leave before an evaluation, rows that stop after one.
        rows = text.growing(torch.arange(len(seeds), device=seeds.device))
        while len(rows) > 0:
            step += 1
            nfe[rows] += 1
            input_ids, attention_mask, position_ids = text.window(rows)
            cells = _Cells.of(text.open_slots[rows, : input_ids.shape[1]])
            scored, stop_logits = call_model(
                model,
                self._score,
                input_ids,
                attention_mask,
                position_ids,
                positions=cells.flat,
                **({} if prompts is None else {"cache": prompts.of_rows(rows)}),
            )
            stops = self._draw_stop(stop_logits, seeds[rows], step)
            edits += self._insert(text, rows, cells, ~stops, scored, seeds[rows], step)
            rows = text.growing(rows[~stops])
        ids, lengths = text.targets(self._pad_id)
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None)
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=Trace.of(edits))

    def _draw_stop(self, stop_logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """(rows,) True where a row stops."""
        stop_probability = (stop_logits.to(torch.float64) / self._stop_temperature).softmax(-1)[:, 0]
        if self._stop == "threshold":
            return stop_probability >= self._stop_threshold
        return uniform(seeds, 1, step=step, stream=_STREAM_STOP).squeeze(1) < stop_probability

    def _insert(
        self,
        text: "_Text",
        rows: Tensor,
        cells: "_Cells",
        goes_on: Tensor,
        scored: "_Scored",
        seeds: Tensor,
        step: int,
    ) -> list[Tensor]:
        """Insert into each unfinished row, and return the edits."""
        scores = cells.spread(scored.scores)
        free = cells.exists & goes_on.unsqueeze(1)
        edits: list[Tensor] = []
        for insertion in range(self._insertions_per_step):
            able = (free.any(1) & (text.budget[rows] > 0)).nonzero().squeeze(1)
            if len(able) == 0:
                break
            uniforms = uniform(seeds[able], 2, step=step, stream=_STREAM_INSERT + insertion)
            slot, token = self._draw_insertion(scored, scores, cells, free, able, uniforms)
            free[able, slot] = False
            gap = text.insert(rows[able], cells.column[able, slot], token)
            edits.append(edits_of_step(step, INSERT, rows[able], gap, token))
        return edits

    @property
    def _draws_pairs(self) -> bool:
        """Whether the draw needs the flattened joint distribution, and not only its slot marginal."""
        tokens = self._token_sampling
        return self._sampling == "joint" and tokens.is_filtered and not tokens.is_greedy

    def _score(self, hidden: Tensor, head: nn.Module) -> "_Scored":
        """The readout: log-weights of slots (cells,), without a table of logits, or pairs (cells, vocab)."""
        if self._draws_pairs:
            scores = suppress_tokens(head(hidden), self._suppressed_ids)
        else:
            pieces = logits_in_pieces(hidden, head, self._suppressed_ids)
            scores = torch.cat([self._slot_scores(logits) for logits in pieces])
        return _Scored(scores, hidden, head)

    def _slot_scores(self, logits: Tensor) -> Tensor:
        """(cells,) log-weight of each slot."""
        if self._sampling == "joint" and self._token_sampling.is_greedy:
            return logits.amax(-1)
        if self._sampling == "joint" and self._token_sampling.temperature != 1:
            logits.div_(self._token_sampling.temperature)
        # Finite also in a slot without a possible token, whose weight is 0.
        highest = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        return logits.sub_(highest).exp_().sum(-1).log() + highest.squeeze(-1)

    def _draw_insertion(
        self, scored: "_Scored", scores: Tensor, cells: "_Cells", free: Tensor, able: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One slot, as its number among the row's open slots, and one token for each of the ``able`` rows."""
        if self._draws_pairs:
            pairs = scores[able].masked_fill(~free[able].unsqueeze(2), -math.inf).flatten(1)
            pair = self._token_sampling.draw(pairs, uniforms[:, 0])
            return pair // scores.shape[2], pair % scores.shape[2]
        free_scores = scores[able].masked_fill(~free[able], -math.inf)
        slot = self._slot_sampling.draw(free_scores, uniforms[:, 0])
        hidden = scored.hidden[cells.first[able] + slot]
        logits = suppress_tokens(scored.head(hidden), self._suppressed_ids)
        token = self._token_sampling.draw(logits, uniforms[:, 1])
        return slot, token


@dataclass(frozen=True)
class _Scored:
    """The open slots of some rows, read out."""

    scores: Tensor
    """Log-weights of slots (cells,), or of pairs (cells, vocab)."""
    hidden: Tensor
    """(cells, d_model), from which the logits of the slot that is drawn are made once more."""
    head: nn.Module


@dataclass(frozen=True)
class _Cells:
    """The open slots of some rows, numbered row by row, in the order of the columns."""

    flat: Tensor
    """(cells,) index into the rows * length cells."""
    row: Tensor
    """(cells,)"""
    slot: Tensor
    """(cells,) number of the slot among the open ones of its row."""
    first: Tensor
    """(rows,) number of the row's first cell."""
    column: Tensor
    """(rows, slots) column of each slot."""
    exists: Tensor
    """(rows, slots) False beyond the number of open slots of a row."""

    @staticmethod
    def of(open_slots: Tensor) -> "_Cells":
        num_open = open_slots.sum(1)
        row, column = open_slots.nonzero(as_tuple=True)
        first = num_open.cumsum(0) - num_open
        slot = torch.arange(len(row), device=row.device) - first[row]
        exists = torch.arange(int(num_open.max()), device=row.device) < num_open.unsqueeze(1)
        columns = torch.zeros(exists.shape, dtype=torch.int64, device=row.device)
        columns[row, slot] = column
        flat = row * open_slots.shape[1] + column
        return _Cells(flat=flat, row=row, slot=slot, first=first, column=columns, exists=exists)

    def spread(self, values: Tensor) -> Tensor:
        """Values of cells (cells, ...) by row and slot (rows, slots, ...); -inf where there is no slot."""
        table = values.new_full((*self.exists.shape, *values.shape[1:]), -math.inf)
        table[self.row, self.slot] = values
        return table


@dataclass
class _Text:
    """The rows while they grow: tokens in the order of insertion, with their positions."""

    input_ids: Tensor
    """(rows, capacity)"""
    position_ids: Tensor
    """(rows, capacity); without meaning from column ``size`` on, as the other two of this shape."""
    open_slots: Tensor
    """(rows, capacity)"""
    size: Tensor
    """(rows,) columns in use."""
    budget: Tensor
    """(rows,) tokens that may still be inserted."""
    target_start: Tensor
    """(rows,) position of the first target token."""

    @staticmethod
    def start(batch: ILMPromptBatch, prompt: Tensor, max_new_tokens: int | None) -> "_Text":
        """The rows without the columns of the ``prompt`` (rows, length)."""
        columns = Columns.of(batch["attention_mask"] & ~prompt)
        rows, length = columns.source.shape
        budget = batch["budget"] if max_new_tokens is None else batch["budget"].clamp(max=max_new_tokens)
        capacity = length + (max(int(budget.max()), 0) if rows > 0 else 0)
        return _Text(
            input_ids=_widen(columns.take(batch["input_ids"]), capacity),
            position_ids=_widen(columns.source, capacity),
            open_slots=_widen(columns.take(batch["open_slots"]), capacity),
            size=columns.exists.sum(1),
            budget=budget.clone(),
            target_start=batch["target_start"],
        )

    def growing(self, rows: Tensor) -> Tensor:
        """Those of the ``rows`` that can take another token."""
        return rows[(self.budget[rows] > 0) & self.open_slots[rows].any(1)]

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and positions of the rows, as wide as the longest of them."""
        size = self.size[rows]
        width = int(size.max())
        attention_mask = torch.arange(width, device=size.device) < size.unsqueeze(1)
        return self.input_ids[rows, :width], attention_mask, self.position_ids[rows, :width]

    def insert(self, rows: Tensor, column: Tensor, token: Tensor) -> Tensor:
        """Insert a token right of a column into each of the rows; return the gaps of the targets (rows,)."""
        position = self.position_ids[rows, column] + 1
        old = self.position_ids[rows]
        self.position_ids[rows] = old + (old >= position.unsqueeze(1))
        end = self.size[rows]
        self.input_ids[rows, end] = token
        self.position_ids[rows, end] = position
        self.open_slots[rows, end] = True
        self.size[rows] += 1
        self.budget[rows] -= 1
        return position - self.target_start[rows]

    def targets(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """Target tokens in the order of the text, padded (rows, width), and their number (rows,)."""
        row, column, place = self._target_cells()
        lengths = torch.bincount(row, minlength=len(self.size))
        ids = self.input_ids.new_full((len(lengths), int(lengths.max()) if len(lengths) > 0 else 0), pad_id)
        ids[row, place] = self.input_ids[row, column]
        return ids, lengths

    def given_edits(self) -> Tensor:
        """Insertions that build the given targets, from left to right."""
        row, column, place = self._target_cells()
        return edits_of_step(0, INSERT, row, place, self.input_ids[row, column])

    def _target_cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and place in its target of each target token, (tokens,) each."""
        place = self.position_ids - self.target_start.unsqueeze(1)
        used = torch.arange(place.shape[1], device=place.device) < self.size.unsqueeze(1)
        row, column = (used & (place >= 0)).nonzero(as_tuple=True)
        return row, column, place[row, column]


def _read_prompts(model: ILMNetwork, batch: ILMPromptBatch, prompt: Tensor) -> PromptCache:
    """The states of the tokens that ``prompt`` (rows, length) marks, which do not depend on the others."""
    columns = Columns.of(prompt)
    cache = PromptCache()
    model(
        columns.take(batch["input_ids"]),
        None if bool(columns.exists.all()) else columns.exists,
        columns.source,
        positions=columns.source.new_empty(0),
        cache=cache,
    )
    return cache


def _widen(table: Tensor, capacity: int) -> Tensor:
    """(rows, capacity) copy with zeros, or False, in the new columns."""
    wide = table.new_zeros(len(table), capacity)
    wide[:, : table.shape[1]] = table
    return wide
