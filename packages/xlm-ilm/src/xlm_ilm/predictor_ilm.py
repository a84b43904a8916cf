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
from typing import Literal, overload

import torch
from jaxtyping import Int
from torch import Tensor

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
    INSERT,
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
    edits_of_step,
)
from xlm_ilm.insertion_ilm import Cells, Drawn, Filters, Insertions, Pairs, Text
from xlm_ilm.replay_ilm import Followed, Guided, Recorded
from xlm_ilm.slots_ilm import SlotQuotaName, SlotRankName, choose_slots, compose_slots
from xlm_ilm.types_ilm import (
    ILMNetwork,
    ILMPromptBatch,
    call_model,
    prompt_of,
)

_STREAM_STOP = 0
_STREAM_INSERT = 1
_STREAM_PLACES = 0
"""Drawn at step 0, before the first evaluation."""


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
        insertions_per_step: Tokens to insert per evaluation, into distinct slots. With rank="drawn" each next
            one is drawn in the same way from the slots that remain.
        rank: "drawn": slots are drawn. "top_prob", "margin" or "entropy": the slots first that surely lack a
            token, and surely which one (:class:`xlm_ilm.slots_ilm.SlotRank`); only tokens are drawn.
        quota: Slots of an evaluation if they are ranked: "count", insertions_per_step of them; "threshold",
            all whose score exceeds tau, and the best one; "budget", the best ones while what the scores
            before the last one lack to certain ones adds up to at most gamma.
        tau: Of quota="threshold", below the score of a certain slot; None for 0.9.
        gamma: Of quota="budget", at least 0; None for 0.1.

    Raises:
        ValueError: If an option is outside its range, or parts do not fit together.
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
        rank: SlotRankName = "drawn",
        quota: SlotQuotaName = "count",
        tau: float | None = None,
        gamma: float | None = None,
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
        require(rank == "drawn" or sampling == "joint", "sampling", sampling, f"left out with rank={rank}, "
                "which draws no slot")  # fmt: skip
        self._pad_id = pad_id
        self._suppressed_ids = list(suppressed_ids)
        self._max_new_tokens = max_new_tokens
        self._stop = stop
        self._stop_threshold = stop_threshold
        self._stop_temperature = stop_temperature
        token_sampling = TokenSampling(temperature, top_k, top_p)
        slot_sampling = TokenSampling(slot_temperature, slot_top_k, slot_top_p, prefix="slot_")
        if sampling == "joint" and temperature == 0:
            # The most probable pair is in the slot with the most probable token.
            slot_sampling = TokenSampling(0.0)
        self._filters = Filters(
            slot=slot_sampling,
            token=token_sampling,
            # Otherwise the marginal probability of a slot is enough.
            draws_pairs=(
                (sampling, rank) == ("joint", "drawn") and token_sampling.is_filtered and temperature > 0
            ),
            is_joint=sampling == "joint",
            is_ranked=rank != "drawn",
            suppressed_ids=self._suppressed_ids,
        )
        self._insertions_per_step = insertions_per_step
        self._slots = compose_slots(rank, quota, number=insertions_per_step, tau=tau, gamma=gamma)

    @overload
    def __call__(
        self, model: ILMNetwork, batch: ILMPromptBatch, seeds: Int[Tensor, " rows"], *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
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
        self,
        model: ILMNetwork,
        batch: ILMPromptBatch,
        seeds: Int[Tensor, " rows"],
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_ilm.ILM.forward`.
            batch: The given parts, from :class:`xlm_ilm.ILMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the insertions; "full" also records log-probabilities: of each insertion,
                of slot and token together unless slots are ranked, and of stopping or going on.

        Returns:
            The targets. A row that reaches its limit, or has no open slot, keeps what it has.
        """
        recorded = Recorded(torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device))
        text, edits, nfe = self._generate(model, batch, seeds, recorded if trace == "full" else Drawn())
        ids, lengths = text.targets(self._pad_id)
        calls = nfe if prompt_sees_target(model) else nfe + 1
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None, calls=calls)
        made = Trace.of(edits)
        if trace is True:
            return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=calls)
        given = recorded.place_log_prob.new_zeros(edits[0].shape[1])
        full = FullTrace(
            **vars(made),
            log_prob=torch.cat([given, *recorded.log_probs]),
            entropy=torch.cat([given, *recorded.entropies]),
            place_log_prob=recorded.place_log_prob,
        )
        return FullyTracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=full, calls=calls)

    @torch.no_grad()
    def fork(
        self, model: ILMNetwork, batch: ILMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        Raises:
            ValueError: If there is no such step, or the text has no such position then.
        """
        text, edits, nfe = self._generate(model, batch, seeds, Drawn(), edit)
        ids, lengths = text.targets(self._pad_id)
        calls = nfe if prompt_sees_target(model) else nfe + 1
        made = edit.made_in(Trace.of(edits))
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=calls)

    def trajectory_log_probs(
        self, model: ILMNetwork, batch: ILMPromptBatch, trace: Trace, seeds: Int[Tensor, " rows"], /
    ) -> TrajectoryLogProbs:
        """Log-probabilities of the insertions and stops of a generation, with gradient.

        Args:
            model: The network, see :meth:`xlm_ilm.ILM.forward`.
            batch: Of the generation.
            trace: All its edits; ``trace=True`` is enough.
            seeds: Those of the generation; nothing is drawn.

        Raises:
            ValueError: If this sampler does not insert or stop where the trace does.
        """
        followed = Followed.start(trace, len(seeds))
        self._generate(model, batch, seeds, followed)
        return TrajectoryLogProbs(log_prob=followed.finish(), place_log_prob=followed.place_log_prob)

    def _generate(
        self,
        model: ILMNetwork,
        batch: ILMPromptBatch,
        seeds: Tensor,
        insertions: Insertions,
        edit: UserEdit | None = None,
    ) -> tuple[Text, list[Tensor], Tensor]:
        """The rows, with the edits that made them and evaluations of the network (rows,)."""
        prompt = torch.zeros_like(batch["attention_mask"])
        prompts = None
        if not prompt_sees_target(model):
            prompt = prompt_of(batch)
            prompts = _read_prompts(model, batch, prompt)
        text = Text.start(batch, prompt, self._max_new_tokens)
        edits = [text.given_edits()]
        nfe = torch.zeros_like(seeds)
        step = 0
        # Rows without budget or slot leave before an evaluation, rows that stop after one.
        rows = text.growing(torch.arange(len(seeds), device=seeds.device))
        while len(rows) > 0:
            step += 1
            nfe[rows] += 1
            input_ids, attention_mask, position_ids = text.window(rows)
            cells = Cells.of(text.open_slots[rows, : input_ids.shape[1]])
            scored, stop_logits = call_model(
                model,
                self._filters.read,
                input_ids,
                attention_mask,
                position_ids,
                positions=cells.flat,
                **({} if prompts is None else {"cache": prompts.of_rows(rows)}),
            )
            stops = self._choose_stop(stop_logits, rows, seeds[rows], step, insertions)
            pairs = Pairs(cells, cells.spread(scored.scores), scored, self._filters)
            edits += self._insert(text, rows, pairs, ~stops, seeds[rows], step, insertions)
            if edit is not None and step == edit.step:
                edits.append(text.write(edit))
            rows = text.growing(rows[~stops])
        return text, edits, nfe

    @torch.no_grad()
    def likelihood(
        self,
        model: ILMNetwork,
        batch: ILMPromptBatch,
        targets: Targets,
        seeds: Int[Tensor, " rows"],
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """Estimate an upper bound of -log of the probability with which this sampler writes each target.

        Each draw inserts the tokens of the target in an order of its own, guided by the sampler's
        distribution (:class:`xlm_ilm.replay_ilm.Guided`); every option of the sampler counts. Over all
        targets, the expectation of exp(-nll) sums to 1.

        Args:
            model: The network, see :meth:`xlm_ilm.ILM.forward`.
            batch: The given parts, from :class:`xlm_ilm.ILMPromptCollator`.
            targets: The texts, their given tokens included.
            seeds: (rows,) int64, the source of the orders.
            num_draws: Orders of each text.
            event: The text and the cells are the same here.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        check_draws(num_draws, event)
        width = batch["input_ids"].shape[1]
        num_missing = torch.zeros_like(seeds)
        log_weights: list[Tensor] = []
        gap = torch.full((len(seeds),), math.inf, dtype=torch.float64, device=seeds.device)
        total = torch.zeros_like(seeds)
        for draw in range(num_draws):
            own_seeds = seeds_of_draw(draw, seeds)
            numbers = uniform(own_seeds, width, step=0, stream=_STREAM_PLACES)
            guided = Guided.start(batch, targets, numbers)
            _, _, nfe = self._generate(model, batch, own_seeds, guided)
            log_weights.append(guided.finish())
            gap, total, num_missing = gap.minimum(guided.smallest_gap), total + nfe, guided.num_missing
        return SamplerLikelihood.of(
            torch.stack(log_weights),
            num_tokens=num_missing,
            is_exact=False,
            models_length=True,
            smallest_gap=gap,
            nfe=total,
        )

    def _choose_stop(
        self, stop_logits: Tensor, rows: Tensor, seeds: Tensor, step: int, insertions: Insertions
    ) -> Tensor:
        """(rows,) True where a row stops."""
        chance = (stop_logits.to(torch.float64) / self._stop_temperature).softmax(-1)[:, 0]
        gap = torch.full_like(chance, math.inf)
        if self._stop == "threshold":
            gap = (chance - self._stop_threshold).abs()
            chance = (chance >= self._stop_threshold).to(torch.float64)
        uniforms = uniform(seeds, 1, step=step, stream=_STREAM_STOP).squeeze(1)
        return insertions.stop(rows, chance, gap, uniforms)

    def _insert(
        self,
        text: Text,
        rows: Tensor,
        pairs: Pairs,
        goes_on: Tensor,
        seeds: Tensor,
        step: int,
        insertions: Insertions,
    ) -> list[Tensor]:
        """Insert into each unfinished row, and return the edits."""
        cells = pairs.cells
        free = cells.exists & goes_on.unsqueeze(1)
        number, turns = self._insertions_per_step, None
        if self._slots is not None:
            turns, gap = choose_slots(self._slots, pairs, free, seeds, step)
            insertions.note_gap(rows[goes_on], lambda: gap()[goes_on])
            number = 1 + int(turns.max())
        edits: list[Tensor] = []
        for insertion in range(number):
            now = free if turns is None else turns == insertion
            able = (now.any(1) & (text.budget[rows] > 0)).nonzero().squeeze(1)
            if len(able) == 0:
                break
            uniforms = uniform(seeds[able], 2, step=step, stream=_STREAM_INSERT + insertion)
            slot, token = insertions.choose(text, rows, pairs, able, now[able], uniforms)
            free[able, slot] = False
            place = text.insert(rows[able], cells.column[able, slot], token)
            edits.append(edits_of_step(step, INSERT, rows[able], place, token))
        return edits


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
