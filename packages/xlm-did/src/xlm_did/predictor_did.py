"""Inference: the deletion process in reverse. Time falls from 1, and tokens are inserted as they appear.

    u = 1
    while True:
        log_a = network(x).length                             # does not depend on u
        if uniform() < P(nothing missing | log_a, u):
            break
        u = time of the next token                            # from log_a and one uniform number
        slot, token = draw(network(x).token_logits(u))        # from one softmax over all slots and tokens
        x = [*x[: slot + 1], token, *x[slot + 1 :]]

Both reads of the network are one evaluation, on the unfinished rows: the trunk does not see the time. A new
token is appended to the row's buffer at the row's own length, with the position right of its slot, and the
positions of the tokens on its right grow by one: nothing moves in memory, and the text is read off the
positions at the end.

The draws of a row depend on its seed, the step and the purpose only, so it comes out the same in any batch.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, overload

import torch
from jaxtyping import Int
from torch import Tensor, nn

from xlm.modules import (
    Columns,
    PromptCache,
    TokenSampling,
    check_draws,
    prompt_sees_target,
    require,
    seeds_of_draw,
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
from xlm_did.clocks_did import NUM_UNIFORMS, Clock, FirstHitting, Steps
from xlm_did.insertion_did import Cells, Filters, Pairs, Text
from xlm_did.replay_did import Drawn, Forced, Insertions, Recorded, Turn, insert
from xlm_did.rounds_did import RoundRules, Rounds
from xlm_did.trajectories_did import Followed
from xlm_did.types_did import DIDNetwork, DIDPromptBatch, call_model, prompt_of

_STREAM_JUMP = 0
_STREAM_INSERT = 1
_STREAM_PLACES = 0
_STREAM_TIMES = 1
"""The last two are drawn at step 0, before the first evaluation."""


class DIDPredictor:
    """Sampler of insertion by reversed deletion (Ding et al. 2026, arXiv:2603.23507, arXiv:2606.10199).

    Without temperature and filters the first-hitting sampler draws from the distribution whose bound
    :class:`xlm_did.DIDLoss` is, and the sampler with steps from one that differs from it by O(1 / num_steps).
    The number of tokens follows the length head in both; temperature and filters act on slots and tokens
    alone. Call it with the network in evaluation mode: dropout is the one thing that the seeds do not govern.

    Args:
        pad_id: Id that fills the rows of the result.
        suppressed_ids: Token ids that are never inserted: those of the loss.
        max_new_tokens: The most tokens to insert; None for the budget that the batch gives each row. Either
            limit conditions the number of tokens: it cuts nothing off.
        num_steps: None for the first-hitting sampler: one token at a time, as many evaluations as tokens and
            one. Else N, the number of equal parts of the time: the tokens that appear in a part are drawn
            independently from one evaluation, so there are at most N evaluations.
        insertions: Into a slot in an evaluation. "one": in rounds (:mod:`xlm_did.rounds_did`), in which the
            number of missing tokens is drawn anew, or with num_steps at the start of each part. "apart": in
            rounds, and of the slots on both sides of a token one waits while another slot needs further
            rounds. Rounds have no likelihood.
        insertions_per_step: The most tokens of a round; None for one in each slot.
        least_expected: In rounds, the fewest tokens expected in a slot that gets one, from 0 to 1. If all
            slots expect fewer, the one that expects most gets one.
        sampling: "joint": slot and token are drawn together. "two_stage": first the slot from its marginal
            probability, then the token given the slot. Without temperature and filters this is the same
            distribution.
        temperature: Of the joint distribution, or of the token given the slot; at least 0, where 0 takes the
            most probable; above 0 with num_steps.
        top_k: Pairs, or tokens given the slot, to choose from; None for all.
        top_p: Mass of the pairs, or tokens given the slot, to choose from; None for all.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        suppressed_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
        num_steps: int | None = None,
        insertions: Literal["any", "one", "apart"] = "any",
        insertions_per_step: int | None = None,
        least_expected: float = 0.0,
        sampling: Literal["joint", "two_stage"] = "joint",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        require(num_steps is None or num_steps >= 1, "num_steps", num_steps, "None or at least 1")
        require(sampling in ("joint", "two_stage"), "sampling", sampling, "'joint' or 'two_stage'")
        self._rules = RoundRules.of(insertions, insertions_per_step, least_expected)
        require(
            (num_steps is None and self._rules is None) or temperature > 0,
            "temperature",
            temperature,
            "above 0 with num_steps or in rounds: an evaluation draws several insertions there, and only one "
            "is the most probable",
        )
        self._pad_id = pad_id
        self._max_new_tokens = max_new_tokens
        self._clock: Clock = FirstHitting() if num_steps is None else Steps(num_steps)
        token_sampling = TokenSampling(temperature, top_k, top_p)
        self._filters = Filters(
            # The most probable pair is in the slot with the most probable token.
            slot=TokenSampling(0.0 if sampling == "joint" and temperature == 0 else 1.0),
            token=token_sampling,
            # Otherwise the marginal probability of a slot is enough.
            draws_pairs=sampling == "joint" and token_sampling.is_filtered and temperature > 0,
            is_joint=sampling == "joint",
            suppressed_ids=list(suppressed_ids),
        )

    @overload
    def __call__(
        self, model: DIDNetwork, batch: DIDPromptBatch, seeds: Int[Tensor, " rows"], *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
    @overload
    def __call__(
        self, model: DIDNetwork, batch: DIDPromptBatch, seeds: Int[Tensor, " rows"], *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: DIDNetwork, batch: DIDPromptBatch, seeds: Int[Tensor, " rows"], *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self,
        model: DIDNetwork,
        batch: DIDPromptBatch,
        seeds: Int[Tensor, " rows"],
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_did.DID.forward`.
            batch: The given parts, from :class:`xlm_did.DIDPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the insertions; "full" also records log-probabilities: of each insertion,
                of slot and token together, and of the jumps; in rounds those of a single draw.

        Returns:
            The targets. A row without budget or open slot keeps what it has.
        """
        nothing = torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device)
        recorded = Recorded(self._clock, nothing)
        source = recorded if trace == "full" else Drawn(self._clock)
        text, edits, nfe = self.run(model, batch, seeds, self._in_rounds(source, seeds))
        ids, lengths = text.targets(self._pad_id)
        calls = nfe if prompt_sees_target(model) else nfe + 1
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None, calls=calls)
        made = Trace.of(edits)
        if trace is True:
            return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=calls)
        given = nothing.new_zeros(edits[0].shape[1])
        full = FullTrace(
            **vars(made),
            log_prob=torch.cat([given, *recorded.log_probs]),
            entropy=torch.cat([given, *recorded.entropies]),
            place_log_prob=recorded.place_log_prob,
        )
        return FullyTracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=full, calls=calls)

    @torch.no_grad()
    def fork(
        self, model: DIDNetwork, batch: DIDPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        Raises:
            ValueError: If there is no such step, or the text has no such position then.
        """
        text, edits, nfe = self.run(model, batch, seeds, self._in_rounds(Drawn(self._clock), seeds), edit)
        ids, lengths = text.targets(self._pad_id)
        calls = nfe if prompt_sees_target(model) else nfe + 1
        made = edit.made_in(Trace.of(edits))
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=calls)

    def trajectory_log_probs(
        self, model: DIDNetwork, batch: DIDPromptBatch, trace: Trace, seeds: Int[Tensor, " rows"], /
    ) -> TrajectoryLogProbs:
        """Log-probabilities of the insertions and jumps of a generation, with gradient.

        Args:
            model: The network of the generation, see :meth:`xlm_did.DID.forward`: a trace does not hold the
                times, which are drawn again. They count as constants.
            batch: Of the generation.
            trace: All its edits; ``trace=True`` is enough.
            seeds: Those of the generation.

        Raises:
            ValueError: If this sampler does not insert or stop where the trace does, or has rounds.
        """
        self._require_no_rounds()
        followed = Followed.start(self._clock, trace, len(seeds))
        self.run(model, batch, seeds, followed)
        return TrajectoryLogProbs(log_prob=followed.finish(), place_log_prob=followed.place_log_prob)

    def run(
        self,
        model: DIDNetwork,
        batch: DIDPromptBatch,
        seeds: Tensor,
        insertions: Insertions,
        edit: UserEdit | None = None,
    ) -> tuple[Text, list[Tensor], Tensor]:
        """Run the sampler on insertions that are drawn or forced; without gradient if called within no_grad.

        Args:
            model: The network, see :meth:`xlm_did.DID.forward`.
            batch: The given parts, from :class:`xlm_did.DIDPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            insertions: See :mod:`xlm_did.replay_did`.
            edit: An edit of the user; None for none.

        Returns:
            The rows, the edits that made them, and evaluations of the network (rows,).
        """
        prompt = torch.zeros_like(batch["attention_mask"])
        prompts = None
        if not prompt_sees_target(model):
            prompt = prompt_of(batch)
            prompts = _read_prompts(model, batch, prompt)
        text = Text.start(batch, prompt, self._max_new_tokens)
        edits = [text.given_edits()]
        nfe = torch.zeros_like(seeds)
        limit = text.budget.clone()
        log_time = torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device)
        step = 0
        # Rows without budget or slot, or at time 0, leave before an evaluation, complete rows after one.
        rows = text.growing(torch.arange(len(seeds), device=seeds.device))
        while len(rows) > 0:
            step += 1
            nfe[rows] += 1
            input_ids, attention_mask, position_ids = text.window(rows)
            cells = Cells.of(text.open_slots[rows, : input_ids.shape[1]])
            turn = Turn(
                insertions=insertions,
                rows=rows,
                num_kept=limit[rows] - text.budget[rows],
                budget=text.budget[rows],
                log_time=log_time[rows],
                uniforms=uniform(seeds[rows], NUM_UNIFORMS, step=step, stream=_STREAM_JUMP),
            )
            scored, _ = call_model(
                model,
                self._filters.read,
                input_ids,
                attention_mask,
                position_ids,
                time=turn,
                positions=cells.flat,
                **({} if prompts is None else {"cache": prompts.of_rows(rows)}),
            )
            pairs = Pairs(cells, cells.spread(scored.scores), scored, self._filters)
            uniforms = partial(uniform, seeds[rows], step=step, stream=_STREAM_INSERT)
            made, inserted = insert(insertions, text, rows, pairs, turn.jump.number, step, uniforms)
            edits += made
            if edit is not None and step == edit.step:
                edits.append(text.write(edit))
            log_time[rows] = turn.jump.log_next
            has_rest = inserted < turn.jump.number
            goes_on = (turn.jump.number > 0) & (has_rest | (turn.jump.log_next > -math.inf))
            rows = text.growing(rows[goes_on])
        return text, edits, nfe

    @torch.no_grad()
    def likelihood(
        self,
        model: DIDNetwork,
        batch: DIDPromptBatch,
        targets: Targets,
        seeds: Int[Tensor, " rows"],
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """Estimate an upper bound of -log of the probability with which this sampler writes each target.

        Each draw inserts the tokens of the target at times of its own (:class:`xlm_did.replay_did.Forced`);
        every option of the sampler counts. Over all targets, the expectation of exp(-nll) sums to 1. The
        first draw, the third and so on have uniform times, as the deletion process has; the others, times and
        an order that are guided by the sampler's distribution, for networks that are far from the data.

        Args:
            model: The network, see :meth:`xlm_did.DID.forward`.
            batch: The given parts, from :class:`xlm_did.DIDPromptCollator`.
            targets: The texts, their given tokens included.
            seeds: (rows,) int64, the source of times and orders.
            num_draws: Times and orders of each text.
            event: The text and the cells are the same here.

        Raises:
            ValueError: If a target does not hold the given tokens of its row, or the sampler has rounds.
        """
        check_draws(num_draws, event)
        self._require_no_rounds()
        num_given, width = batch["input_ids"].shape[1], targets.ids.shape[1]
        targets = replace(targets, ids=nn.functional.pad(targets.ids, (0, max(1 - width, 0))))
        num_missing = torch.zeros_like(seeds)
        log_weights: list[Tensor] = []
        total = torch.zeros_like(seeds)
        for draw in range(num_draws):
            own_seeds = seeds_of_draw(draw, seeds)
            places = uniform(own_seeds, num_given, step=0, stream=_STREAM_PLACES)
            times = uniform(own_seeds, targets.ids.shape[1], step=0, stream=_STREAM_TIMES)
            is_planned = draw % 2 == 0
            forced = Forced.start(
                self._clock,
                batch,
                targets,
                places,
                times if is_planned else None,
                guided_share=num_draws // 2 / num_draws,
            )
            _, _, nfe = self.run(model, batch, own_seeds, forced)
            log_weights.append(forced.finish())
            total, num_missing = total + nfe, forced.num_missing
        return SamplerLikelihood.of(
            torch.stack(log_weights),
            num_tokens=num_missing,
            is_exact=False,
            models_length=True,
            smallest_gap=torch.full((len(seeds),), math.inf, dtype=torch.float64, device=seeds.device),
            nfe=total,
        )

    def _in_rounds(self, source: Drawn | Recorded, seeds: Tensor) -> Insertions:
        return source if self._rules is None else Rounds.start(source, self._rules, seeds)

    def _require_no_rounds(self) -> None:
        found = None if self._rules is None else self._rules.insertions
        require(
            found is None,
            "insertions",
            found,
            "'any' for likelihoods and trajectories: the slots of a round depend on each other",
        )


def _read_prompts(model: DIDNetwork, batch: DIDPromptBatch, prompt: Tensor) -> PromptCache:
    """The states of the tokens that ``prompt`` (rows, length) marks, which do not depend on the others."""
    columns = Columns.of(prompt)
    cache = PromptCache()
    model(
        columns.take(batch["input_ids"]),
        None if bool(columns.exists.all()) else columns.exists,
        columns.source,
        time=torch.ones(len(prompt), dtype=torch.float64, device=prompt.device),
        positions=columns.source.new_empty(0),
        cache=cache,
    )
    return cache
