"""Inference: a row is written token by token, from left to right, until EOS or a limit ends it.

    while len(x) < limit and x[-1] != EOS:
        logits = network(x)[-1]
        x = [*x, draw(logits)]

The network sees the prompts once and from then on only the newest token of each row: keys and values of all
tokens before are kept in a cache. Rows that end leave the batch and the cache.

The draws of a row depend on its seed and the number of the token only, so that it comes out the same in any
batch.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import (
    Draw,
    Force,
    KeyValueCache,
    Notes,
    Recorded,
    TokenSampling,
    Writer,
    check_draws,
    require,
    suppress_tokens,
    uniform,
)
from xlm.modules.records import (
    Event,
    FullTrace,
    FullyTracedPrediction,
    Prediction,
    SamplerLikelihood,
    Targets,
    Trace,
    TracedPrediction,
    TrajectoryLogProbs,
    UserEdit,
)
from xlm.modules.samplers import Automaton, refuse_constrained
from xlm_arlm.constraint_arlm import NextTokens, constrained_writer
from xlm_arlm.replay_arlm import by_edit, ends_early, new_tokens, with_token, write_at_once
from xlm_arlm.types_arlm import (
    ARLMNetwork,
    ARLMPromptBatch,
    call_model,
)

_STREAM_TOKEN = 0

_NO_ID = -1
"""An id that no token has."""


class ARLMPredictor:
    """Draws each token from p(x_i | x_1, ..., x_{i-1}), or takes the most probable one.

    Without filters, at temperature 1, the targets follow the distribution that
    :meth:`xlm_arlm.ARLMLoss.likelihood` scores, given that no suppressed token comes. Call it with the
    network in evaluation mode: dropout is the one thing that the seeds do not govern.

    Args:
        pad_id: Id that fills the rows of the result.
        eos_id: Id of the token that ends a row; None for none, as in packed blocks: a row
            ends with its budget.
        suppressed_ids: Token ids that are never generated; eos_id may be among them, and is generated all the
            same.
        max_new_tokens: The most tokens to generate; None for the budget that the batch gives each row.
        temperature: Divides the logits, at least 0; 0 takes the most probable token (greedy).
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.
        constraint: The texts to write, such as those of :func:`xlm.modules.samplers.match_expression`, whose
            weights are in the prediction; None for all.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        constraint: Automaton | None = None,
    ) -> None:
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        self._pad_id = pad_id
        self._eos_id = eos_id
        self._suppressed_ids = [token for token in suppressed_ids if token != eos_id]
        self._max_new_tokens = max_new_tokens
        self._sampling = TokenSampling(temperature, top_k, top_p)
        self._constraint = constraint

    @overload
    def __call__(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
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
        self,
        model: ARLMNetwork,
        batch: ARLMPromptBatch,
        seeds: Tensor,
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_arlm.ARLM.forward`.
            batch: The given parts, from :class:`xlm_arlm.ARLMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the insertions; "full" also records their probabilities.

        Raises:
            ValueError: If a row has no text that the constraint allows, or there is one and trace="full".

        Returns:
            The targets. A row that reaches its limit keeps what it has.
        """
        if trace != "full" and self._constraint is not None:
            budget = limited_budget(batch, self._max_new_tokens)
            vocabulary = NextTokens(self._suppressed_ids, self._eos_id)
            writer = constrained_writer(batch, budget, self._sampling, self._constraint, vocabulary)
            made = self._generate(model, batch, seeds, writer)
            prediction = make_prediction(batch, *made, pad_id=self._pad_id, trace=trace)
            return replace(prediction, log_weight=writer.log_weight)
        if trace != "full":
            made = self._generate(model, batch, seeds, Draw(self._sampling))
            return make_prediction(batch, *made, pad_id=self._pad_id, trace=trace)
        refuse_constrained(self._constraint, "a trajectory has no likelihood by replay")
        recorded = Recorded(self._sampling)
        new_ids, num_new, nfe = self._generate(model, batch, seeds, recorded)
        plain = make_prediction(batch, new_ids, num_new, nfe, pad_id=self._pad_id, trace=True)
        assert plain.trace is not None
        found = by_edit(recorded.notes, plain.trace, num_new)
        entropies = by_edit(replace(recorded.notes, log_prob=recorded.entropy), plain.trace, num_new)
        full = FullTrace(**vars(plain.trace), **vars(found), entropy=entropies.log_prob)
        return FullyTracedPrediction(ids=plain.ids, lengths=plain.lengths, nfe=nfe, trace=full)

    @torch.no_grad()
    def fork(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        The tokens up to the step are forced, the one of the edit among them, and those behind it are drawn.

        Raises:
            ValueError: If there is a constraint or no such step, or the position is not among the tokens
                generated by then.
        """
        refuse_constrained(self._constraint, "a text with an edit may not be allowed")
        ids, num_new, _ = self._generate(model, batch, seeds, Draw(self._sampling))
        column = edit.position - int(batch["num_fixed"][edit.row])
        if not 0 <= column < edit.step <= int(num_new[edit.row]):
            raise ValueError(
                f"position {edit.position} is not among the tokens generated up to step {edit.step}"
            )
        ids[edit.row, column] = edit.token
        known = torch.zeros_like(ids, dtype=torch.bool)
        known[edit.row, : edit.step] = True
        writer = Force(self._sampling, ids, known)
        new_ids, num_new, nfe = self._generate(model, batch, seeds, writer)
        made = make_prediction(batch, new_ids, num_new, nfe, pad_id=self._pad_id, trace=True)
        assert isinstance(made, TracedPrediction)
        return made

    def _generate(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, seeds: Tensor, writer: Writer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New tokens (rows, budget) with their number (rows,), and evaluations of the network (rows,)."""
        budget = limited_budget(batch, self._max_new_tokens)
        new_ids = torch.full((len(budget), largest(budget)), self._pad_id, device=budget.device)
        num_new = torch.zeros_like(budget)
        nfe = torch.zeros_like(budget)
        cache = KeyValueCache()
        rows = (budget > 0).nonzero().squeeze(1)
        input_ids, attention_mask = start(batch, rows)
        step = 0
        while len(rows) > 0:
            step += 1
            nfe[rows] += 1
            logits = next_token_logits(model, input_ids, attention_mask, cache, self._suppressed_ids)
            uniforms = uniform(seeds[rows], 1, step=step, stream=_STREAM_TOKEN).squeeze(1)
            token = writer.write(rows, torch.full_like(rows, step - 1), logits, uniforms)
            written = token != (_NO_ID if self._eos_id is None else self._eos_id)
            new_ids[rows[written], step - 1] = token[written]
            num_new[rows[written]] += 1
            goes_on = (written & (step < budget[rows])).nonzero().squeeze(1)
            if len(goes_on) < len(rows):
                cache.select(goes_on)
            rows, input_ids, attention_mask = rows[goes_on], token[goes_on].unsqueeze(1), None
        return new_ids, num_new, nfe

    @torch.no_grad()
    def likelihood(
        self,
        model: ARLMNetwork,
        batch: ARLMPromptBatch,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """-log of the probability with which this sampler writes each target: exact, from one evaluation.

        All options count: temperature, filters, suppressed ids, the limit of new tokens. A row that reaches
        its limit needs no EOS. Over all targets, exp(-nll) sums to 1. With temperature=0 it is 0 or 1.

        Args:
            model: The network, see :meth:`xlm_arlm.ARLM.forward`.
            batch: The given parts, from :class:`xlm_arlm.ARLMPromptCollator`.
            targets: The texts, their fixed tokens included.
            seeds: (rows,) int64; nothing is drawn.
            num_draws: At least 1; one replay gives the exact value.
            event: The text and the cells are the same here.

        Raises:
            ValueError: If a target does not begin with the fixed tokens of its row, or there is a constraint.
        """
        refuse_constrained(self._constraint, "a text has no likelihood by replay")
        check_draws(num_draws, event)
        budget = limited_budget(batch, self._max_new_tokens)
        new_ids, num_new = new_tokens(batch, targets)
        possible = (num_new <= budget) & ~ends_early(new_ids, num_new, self._eos_id)
        if self._eos_id is None:
            possible &= num_new == budget
        notes = self._replay(model, batch, new_ids, num_new.where(possible, 0), possible)
        log_weights = notes.sums(torch.zeros(len(budget), dtype=torch.float64, device=budget.device))
        return SamplerLikelihood.of(
            log_weights.masked_fill(~possible, -math.inf).unsqueeze(0),
            num_tokens=num_new,
            is_exact=True,
            models_length=self._eos_id is not None,
            smallest_gap=torch.full_like(log_weights, math.inf),
            nfe=(possible & (budget > 0)).long(),
        )

    def trajectory_log_probs(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, trace: Trace, seeds: Tensor, /
    ) -> TrajectoryLogProbs:
        """Log-probabilities of the draws of a generation, with gradient.

        Args:
            model: The network, of which gradients are wanted.
            batch: The batch of the generation.
            trace: Its edits.
            seeds: (rows,) int64; nothing is drawn.

        Returns:
            Of each insertion, and in ``place_log_prob`` of EOS.

        Raises:
            ValueError: If there is a constraint.
        """
        refuse_constrained(self._constraint, "a trajectory has no likelihood by replay")
        drawn = trace.step > 0
        num_new = torch.bincount(trace.row[drawn], minlength=len(seeds))
        new_ids = num_new.new_full((len(seeds), largest(num_new)), self._pad_id)
        new_ids[trace.row[drawn], trace.step[drawn] - 1] = trace.token[drawn]
        notes = self._replay(model, batch, new_ids, num_new, torch.ones_like(num_new, dtype=torch.bool))
        return by_edit(notes, trace, num_new)

    def _replay(
        self, model: ARLMNetwork, batch: ARLMPromptBatch, new_ids: Tensor, num_new: Tensor, wanted: Tensor
    ) -> Notes:
        """Notes of the new tokens of the ``wanted`` rows, and of EOS where a row ends before its limit."""
        ends = wanted & (num_new < limited_budget(batch, self._max_new_tokens))
        if self._eos_id is not None:
            new_ids = with_token(new_ids, num_new, self._eos_id)
            num_new = num_new + ends.long()
        column = torch.arange(new_ids.shape[1], device=new_ids.device)
        force = Force(self._sampling, new_ids, wanted.unsqueeze(1) & (column < num_new.unsqueeze(1)))
        write_at_once(model, batch, force, self._suppressed_ids)
        return force.notes


def limited_budget(batch: ARLMPromptBatch, max_new_tokens: int | None) -> Int[Tensor, " rows"]:
    """(rows,) the most tokens that each row may get."""
    return batch["budget"] if max_new_tokens is None else batch["budget"].clamp(max=max_new_tokens)


def start(
    batch: ARLMPromptBatch, rows: Int[Tensor, " kept"]
) -> tuple[Int[Tensor, "kept length"], Bool[Tensor, "kept length"] | None]:
    """Token ids of the given rows, and their mask; None, which is faster, if nothing is padding."""
    attention_mask = batch["attention_mask"][rows]
    return batch["input_ids"][rows], None if bool(attention_mask.all()) else attention_mask


def largest(values: Int[Tensor, " rows"]) -> int:
    """The largest of some numbers that are not negative; 0 if there are none."""
    return int(values.max()) if len(values) > 0 else 0


def next_token_logits(
    model: ARLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | None,
    cache: KeyValueCache,
    suppressed_ids: Sequence[int],
) -> Float[Tensor, "rows vocab"]:
    """Logits after the last column, with -inf at suppressed ids, in float32 at least.

    Args:
        model: The network.
        input_ids: What follows the tokens in the cache, padded on the left, shape (rows, length).
        attention_mask: True at real tokens, shape (rows, length); None if all are.
        cache: Keys and values of the tokens so far; grows by ``input_ids``.
        suppressed_ids: Ids to exclude.

    Returns:
        Logits, shape (rows, vocab).
    """
    num_rows, length = input_ids.shape
    last = torch.arange(1, num_rows + 1, device=input_ids.device) * length - 1
    logits = call_model(model, input_ids, attention_mask, positions=last, cache=cache)
    return suppress_tokens(logits, suppressed_ids)


def make_prediction(
    batch: ARLMPromptBatch,
    new_ids: Int[Tensor, "rows budget"],
    num_new: Int[Tensor, " rows"],
    nfe: Int[Tensor, " rows"],
    *,
    pad_id: int,
    trace: bool,
) -> Prediction:
    """Put the fixed beginning of each target before its generated tokens.

    Args:
        batch: The given parts.
        new_ids: Generated tokens, shape (rows, budget).
        num_new: Their number in each row, shape (rows,).
        nfe: Evaluations of the network, shape (rows,).
        pad_id: Id that fills the rows of the result.
        trace: Whether to give the insertions.

    Returns:
        The prediction.
    """
    num_fixed = batch["num_fixed"]
    lengths = num_fixed + num_new
    ids = new_ids.new_full((len(lengths), largest(lengths)), pad_id)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    is_fixed = place < num_fixed.unsqueeze(1)
    is_new = ~is_fixed & (place < lengths.unsqueeze(1))
    # A left-padded prompt ends with the fixed tokens.
    from_prompt = place - num_fixed.unsqueeze(1) + batch["input_ids"].shape[1]
    from_new = place - num_fixed.unsqueeze(1)
    row = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
    ids[is_fixed] = batch["input_ids"][row[is_fixed], from_prompt[is_fixed]]
    ids[is_new] = new_ids[row[is_new], from_new[is_new]]
    if not trace:
        return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None)
    edits = _trace(ids, num_fixed, lengths)
    return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=edits)


def _trace(ids: Tensor, num_fixed: Tensor, lengths: Tensor) -> Trace:
    """The insertions at the end of each row: those of a step one row after another, from left to right."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    row, position = (columns < lengths.unsqueeze(1)).nonzero(as_tuple=True)
    step = (position + 1 - num_fixed[row]).clamp(min=0)
    order = step.argsort(stable=True)
    step, row, position = step[order], row[order], position[order]
    operation = torch.zeros_like(step)
    return Trace(step=step, row=row, operation=operation, position=position, token=ids[row, position])
