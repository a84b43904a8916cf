"""Beam search: the most probable target instead of a random one.

Each row keeps its ``num_beams`` best hypotheses; one that has ended keeps its place and competes with the
others (Meister et al. 2020, "Best-First Beam Search", arXiv:2007.03909, algorithm 1). With one beam this is
greedy decoding; with as many beams as there are hypotheses it is exhaustive search.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import KeyValueCache, require
from xlm.modules.records import Prediction, TracedPrediction, UserEdit
from xlm_arlm.predictor_arlm import (
    largest,
    limited_budget,
    make_prediction,
    next_token_logits,
    start,
)
from xlm_arlm.types_arlm import ARLMNetwork, ARLMPromptBatch


class ARLMBeamPredictor:
    """Searches the hypothesis y with the best score.

    The score is that of Wu et al. 2016 (arXiv:1609.08144, eq. 14),

        s(y) = log p(y | prompt) / lp(y),   lp(y) = ((5 + |y|) / 6)^length_penalty,

    with |y| the number of tokens, EOS included. A hypothesis that reaches the limit is cut there, without
    EOS, and competes with the probability it has. p is the distribution of :class:`xlm_arlm.ARLMPredictor` at
    temperature 1. Call it with the network in evaluation mode.

    Args:
        pad_id: Id that fills the rows of the result.
        eos_id: Id of the token that ends a row.
        num_beams: Hypotheses to keep for each row, at least 1; 1 is greedy decoding.
        length_penalty: Exponent, at least 0; 0 compares probabilities, which favours short targets, and
            larger values favour longer ones.
        suppressed_ids: Token ids that are never generated; eos_id may be among them, and is generated all the
            same.
        max_new_tokens: The most tokens to generate; None for the budget that the batch gives each row.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        eos_id: int,
        num_beams: int = 4,
        length_penalty: float = 0.0,
        suppressed_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
    ) -> None:
        require(num_beams >= 1, "num_beams", num_beams, "at least 1")
        require(0 <= length_penalty < math.inf, "length_penalty", length_penalty, "at least 0 and finite")
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        self._pad_id = pad_id
        self._eos_id = eos_id
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._suppressed_ids = [token for token in suppressed_ids if token != eos_id]
        self._max_new_tokens = max_new_tokens

    @overload
    def __call__(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction:
        """Search a target for each row.

        Args:
            model: The network, see :meth:`xlm_arlm.ARLM.forward`.
            batch: The given parts, from :class:`xlm_arlm.ARLMPromptCollator`.
            seeds: (rows,) int64; nothing is drawn.
            trace: Whether to give the insertions: those of the best hypothesis, whenever it became the best.

        Returns:
            The best hypothesis of each row. ``nfe`` counts the calls of the network in which any hypothesis
            of the row took part, ``states`` the hypotheses evaluated.
        """
        budget = limited_budget(batch, self._max_new_tokens)
        new_ids = torch.full((len(budget), largest(budget)), self._pad_id, device=budget.device)
        num_new = torch.zeros_like(budget)
        nfe, states = torch.zeros_like(budget), torch.zeros_like(budget)
        cache = KeyValueCache()
        rows = (budget > 0).nonzero().squeeze(1)
        input_ids, attention_mask = start(batch, rows)
        beams = _Beams.start(len(rows), self._num_beams, new_ids)
        num_live = torch.ones_like(rows)
        step = 0
        while len(rows) > 0:
            step += 1
            nfe[rows] += 1
            states[rows] += num_live
            logits = next_token_logits(model, input_ids, attention_mask, cache, self._suppressed_ids)
            beams, parent = self._extend(beams, logits.to(torch.float64).log_softmax(-1), step)

            done = self._is_done(beams, budget[rows], step)
            new_ids[rows[done]], num_new[rows[done]] = self._best(beams, done)
            stays = (~done).nonzero().squeeze(1)
            rows, beams = rows[stays], beams.select(stays)
            live = beams.live
            num_live = live.sum(1)
            cache.select(parent[stays][live])
            input_ids, attention_mask = beams.ids[:, :, step - 1][live].unsqueeze(1), None
        prediction = make_prediction(batch, new_ids, num_new, nfe, pad_id=self._pad_id, trace=trace)
        return replace(prediction, states=states)

    def fork(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Refuse an edit of the user.

        Raises:
            ValueError: If it is called, with the reason.
        """
        raise ValueError(
            f"step {edit.step}: beam search keeps {self._num_beams} texts at once, and a trace shows the "
            "best alone, so none of its steps can be continued"
        )

    def _extend(self, beams: "_Beams", log_p: Tensor, step: int) -> tuple["_Beams", Tensor]:
        """The best hypotheses that extend the ``beams`` by a token, or ended earlier.

        Args:
            beams: Hypotheses so far.
            log_p: (live, vocab) log-probabilities of the next token of each live hypothesis.
            step: Number of the next token, from 1.

        Returns:
            The new hypotheses, and for each live one the place of its parent among the live ones before.
        """
        num_rows, num_beams = beams.log_p.shape
        # No hypothesis can place more than num_beams of its continuations.
        best, best_token = log_p.topk(min(num_beams, log_p.shape[1]))
        candidate = best.new_full((num_rows, num_beams, best.shape[1]), -math.inf)
        candidate[beams.live] = beams.log_p[beams.live].unsqueeze(1) + best
        candidate[:, :, 0] = torch.where(beams.ended, beams.log_p, candidate[:, :, 0])
        token = torch.full_like(candidate, self._eos_id, dtype=torch.int64)
        token[beams.live] = best_token
        length = beams.length + (~beams.ended).long()

        score = candidate / self._penalty(length).unsqueeze(2)
        chosen = score.flatten(1).topk(num_beams).indices
        beam = chosen // candidate.shape[2]
        token = token.flatten(1).gather(1, chosen)
        place = torch.zeros_like(beams.length)
        place[beams.live] = torch.arange(len(log_p), device=place.device)
        ids = beams.ids.gather(1, beam.unsqueeze(2).expand_as(beams.ids))
        ends = token == self._eos_id
        ids[:, :, step - 1] = torch.where(ends, self._pad_id, token)
        extended = _Beams(
            ids=ids,
            log_p=candidate.flatten(1).gather(1, chosen),
            length=length.gather(1, beam),
            ended=ends,
        )
        return extended, place.gather(1, beam)

    def _is_done(self, beams: "_Beams", budget: Tensor, step: int) -> Tensor:
        """(rows,) True where the limit is reached, or no live hypothesis can still beat the best that ended.

        The log-probability of a hypothesis can only fall and its penalty only grow, up to that of the limit.
        """
        ended = (beams.log_p / self._penalty(beams.length)).masked_fill(~beams.ended, -math.inf).amax(1)
        bound = beams.log_p.masked_fill(~beams.live, -math.inf).amax(1) / self._penalty(budget)
        return (step >= budget) | (ended >= bound)

    def _best(self, beams: "_Beams", rows: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, budget) tokens of the best hypothesis of each of the ``rows``, and their number (rows,)."""
        best = (beams.log_p[rows] / self._penalty(beams.length[rows])).argmax(1)
        index = torch.arange(len(best), device=best.device)
        length = beams.length[rows] - beams.ended[rows].long()
        return beams.ids[rows][index, best], length[index, best]

    def _penalty(self, length: Tensor) -> Tensor:
        return ((5 + length.to(torch.float64)) / 6) ** self._length_penalty


@dataclass(frozen=True)
class _Beams:
    """The hypotheses of the unfinished rows."""

    ids: Tensor
    """(rows, beams, budget) their tokens."""
    log_p: Tensor
    """(rows, beams) log-probability; -inf where there is no hypothesis."""
    length: Tensor
    """(rows, beams) number of tokens, EOS included."""
    ended: Tensor
    """(rows, beams) True where EOS has come."""

    @staticmethod
    def start(num_rows: int, num_beams: int, new_ids: Tensor) -> "_Beams":
        """One empty hypothesis in each row, for ids of the width and device of ``new_ids``."""
        log_p = torch.full((num_rows, num_beams), -math.inf, dtype=torch.float64, device=new_ids.device)
        log_p[:, 0] = 0
        return _Beams(
            ids=new_ids.new_zeros(num_rows, num_beams, new_ids.shape[1]),
            log_p=log_p,
            length=torch.zeros_like(log_p, dtype=torch.int64),
            ended=torch.zeros_like(log_p, dtype=torch.bool),
        )

    @property
    def live(self) -> Tensor:
        """(rows, beams) True where there is a hypothesis that has not ended."""
        return ~self.ended & (self.log_p > -math.inf)

    def select(self, rows: Tensor) -> "_Beams":
        """The beams of the given rows."""
        return _Beams(self.ids[rows], self.log_p[rows], self.length[rows], self.ended[rows])
