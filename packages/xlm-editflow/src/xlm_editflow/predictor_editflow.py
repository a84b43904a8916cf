"""Inference: edits are made as time falls from 1, where the text is the source, to 0.

    u = 1
    for v in ((N - 1) / N, ..., 1 / N, 0):
        rates = network(x, u)
        x = x with each pending edit made with probability 1 - v / u     # all read against x
        u = v

or, one edit at a time (first hitting), with the time of the next edit from the integral of all rates. Both
reads of the network are then one evaluation: the trunk does not see the time.

The draws of a row depend on its seed, the step and the purpose only, so it comes out the same in any batch.
"""

import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
from jaxtyping import Int
from torch import Tensor

from xlm.modules import TokenSampling, check_draws, prompt_sees_target, require, seeds_of_draw
from xlm.modules.records import (
    DELETE,
    Event,
    FullTrace,
    FullyTracedPrediction,
    Prediction,
    SamplerLikelihood,
    Targets,
    Trace,
    TracedPrediction,
    UserEdit,
)
from xlm_editflow.alignment_editflow import Alignment, check_alignment
from xlm_editflow.choice_editflow import Cells, Evaluation, draw_reverse
from xlm_editflow.rates_editflow import Rates
from xlm_editflow.reader_editflow import Reader, Turn
from xlm_editflow.replay_editflow import Choices, Drawn, Forced, Recorded
from xlm_editflow.text_editflow import Text
from xlm_editflow.types_editflow import ChooseTime, EditFlowNetwork, EditFlowPromptBatch, OperationsAt


class EditFlowPredictor:
    """Sampler of edit flows (Havasi et al. 2025, arXiv:2506.09018, section 3).

    Without temperature and filters its distribution is the one whose bound :class:`xlm_editflow.EditFlowLoss`
    is, up to O(1 / num_steps), or up to the grid of times. Temperature and filters act on tokens alone, never
    on which edits are made. Call it with the network in evaluation mode: dropout is the one thing that the
    seeds do not govern.

    Args:
        pad_id: Id that fills the rows of the result.
        suppressed_ids: Token ids that are never written: those of the loss.
        max_new_tokens: The most tokens by which a text may exceed its source; None for the limit that the
            batch gives each row. A text of the longest length takes no insertion.
        num_steps: N, the number of equal parts of the time, each of one evaluation. None for first hitting:
            one edit at a time, as many evaluations as edits and one.
        insertions: "one": at most one token into a slot in a step, as published. "poisson": as many as the
            rate lets appear. Read with num_steps only.
        correction: Length of the reverse moves in steps, at least 0. Each step but the last goes beyond its
            end by this many steps, but not below time 0, and back by reverse moves, which delete tokens as
            noise does: what was inserted wrongly gets another chance. With num_steps, and from an empty
            source, only.
        last_time: Time below which first hitting makes no edit, in (0, 1).
        num_points: Times at which first hitting reads the rates of a text, at least 2; the trunk is evaluated
            once.
        alignment: Of the paths that :meth:`likelihood` follows from a source that is not empty: that of the
            training.
        temperature: Of a token given the edit; at least 0, where 0 takes the most probable.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        suppressed_ids: Sequence[int] = (),
        max_new_tokens: int | None = None,
        num_steps: int | None = 64,
        insertions: Literal["one", "poisson"] = "one",
        correction: float = 0.0,
        last_time: float = 1e-3,
        num_points: int = 32,
        alignment: Alignment = "optimal",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        require(max_new_tokens is None or max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
        require(num_steps is None or num_steps >= 1, "num_steps", num_steps, "None or at least 1")
        require(insertions in ("one", "poisson"), "insertions", insertions, "'one' or 'poisson'")
        require(correction >= 0, "correction", correction, "at least 0")
        require(correction == 0 or num_steps is not None, "correction", correction, "0 without num_steps")
        require(0 < last_time < 1, "last_time", last_time, "in (0, 1)")
        require(num_points >= 2, "num_points", num_points, "at least 2")
        check_alignment(alignment)
        self._pad_id = pad_id
        self._suppressed_ids = list(suppressed_ids)
        self._max_new_tokens = max_new_tokens
        self._num_steps = num_steps
        self._is_poisson = insertions == "poisson"
        self._correction = correction
        self._last_time = last_time
        self._num_points = num_points
        self._alignment: Alignment = alignment
        self._sampling = TokenSampling(temperature, top_k, top_p)

    @overload
    def __call__(
        self,
        model: EditFlowNetwork,
        batch: EditFlowPromptBatch,
        seeds: Int[Tensor, " rows"],
        *,
        trace: Literal["full"],
    ) -> FullyTracedPrediction: ...
    @overload
    def __call__(
        self,
        model: EditFlowNetwork,
        batch: EditFlowPromptBatch,
        seeds: Int[Tensor, " rows"],
        *,
        trace: Literal[True],
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self,
        model: EditFlowNetwork,
        batch: EditFlowPromptBatch,
        seeds: Int[Tensor, " rows"],
        *,
        trace: bool = False,
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self,
        model: EditFlowNetwork,
        batch: EditFlowPromptBatch,
        seeds: Int[Tensor, " rows"],
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_editflow.EditFlow.forward`.
            batch: The sources, from :class:`xlm_editflow.EditFlowPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits; "full" also records log-probabilities: of each token that is
                inserted or substitutes another, given where, and of operations, numbers and times. Deletions
                have 0: they are among the operations.

        Returns:
            The targets. A row without room, open slot or editable token keeps what it has.

        Raises:
            ValueError: If there are corrections and a row does not start from an empty source.
        """
        nothing = torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device)
        recorded = Recorded(self._is_poisson, nothing)
        choices = recorded if trace == "full" else Drawn(self._is_poisson)
        text, edits, nfe = self.run(model, batch, seeds, choices)
        ids, lengths = text.targets(self._pad_id)
        calls = nfe if prompt_sees_target(model) else nfe + 1
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None, calls=calls)
        made = Trace.of(edits)
        if trace is True:
            return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=calls)
        has_token = (made.step > 0) & (made.operation != DELETE)
        log_prob, entropy = nothing.new_zeros(2, len(made.step))
        log_prob[has_token] = torch.cat([nothing[:0], *recorded.log_probs])
        entropy[has_token] = torch.cat([nothing[:0], *recorded.entropies])
        full = FullTrace(
            **vars(made), log_prob=log_prob, entropy=entropy, place_log_prob=recorded.place_log_prob
        )
        return FullyTracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=full, calls=calls)

    @torch.no_grad()
    def fork(
        self, model: EditFlowNetwork, batch: EditFlowPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        Later edits of its token are drawn, and not made.

        Raises:
            ValueError: If there is no such step, or the text has no such position then.
        """
        text, edits, nfe = self.run(model, batch, seeds, Drawn(self._is_poisson), edit)
        ids, lengths = text.targets(self._pad_id)
        calls = nfe if prompt_sees_target(model) else nfe + 1
        made = edit.made_in(Trace.of(edits))
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=made, calls=calls)

    @torch.no_grad()
    def likelihood(
        self,
        model: EditFlowNetwork,
        batch: EditFlowPromptBatch,
        targets: Targets,
        seeds: Int[Tensor, " rows"],
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """Estimate an upper bound of -log of the probability with which this sampler writes each target.

        Each draw makes the edits between source and target at times of its own
        (:class:`xlm_editflow.replay_editflow.Forced`); every option of the sampler counts. Paths with
        detours, such as tokens that are inserted and deleted again, are never drawn: the expectation of
        exp(-nll) is the probability of the other paths, so the bound stays loose however many the draws.

        Args:
            model: The network, see :meth:`xlm_editflow.EditFlow.forward`.
            batch: The sources, from :class:`xlm_editflow.EditFlowPromptCollator`.
            targets: The texts, their given tokens included.
            seeds: (rows,) int64, the source of the times.
            num_draws: Plans of each text.
            event: The text and the cells are the same here.

        Raises:
            ValueError: If the sampler makes corrections, whose deletions belong to no plan, or a target does
                not hold the given tokens of its row.
        """
        require(
            self._correction == 0,
            "correction",
            self._correction,
            "0 for a likelihood of the sampler: paths with corrections delete what they inserted",
        )
        check_draws(num_draws, event)
        log_weights: list[Tensor] = []
        total, num_missing = torch.zeros_like(seeds), torch.zeros_like(seeds)
        for draw in range(num_draws):
            own_seeds = seeds_of_draw(draw, seeds)
            forced = Forced.start(
                batch,
                targets,
                own_seeds,
                num_steps=self._num_steps,
                alignment=self._alignment,
                is_poisson=self._is_poisson,
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
            has_all_paths=False,
        )

    def run(
        self,
        model: EditFlowNetwork,
        batch: EditFlowPromptBatch,
        seeds: Tensor,
        choices: Choices,
        edit: UserEdit | None = None,
    ) -> tuple[Text, list[Tensor], Tensor]:
        """Run the sampler on edits that are drawn or forced; without gradient if called within no_grad.

        Args:
            model: The network, see :meth:`xlm_editflow.EditFlow.forward`.
            batch: The sources, from :class:`xlm_editflow.EditFlowPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            choices: See :mod:`xlm_editflow.replay_editflow`.
            edit: An edit of the user; None for none.

        Returns:
            The rows, the edits that made them, and evaluations of the network (rows,).

        Raises:
            ValueError: If there are corrections and a row does not start from an empty source.
        """
        if self._correction > 0 and bool(batch["editable"].any()):
            raise ValueError(
                f"correction must be 0 for sources that are not empty, got {self._correction}: reverse moves "
                "towards another source are not known to the sampler"
            )
        text = Text.start(batch, self._max_new_tokens)
        reader = Reader.of(model, batch)
        edits = [text.given_edits()]
        nfe = torch.zeros_like(seeds)
        rows = text.changeable(torch.arange(len(seeds), device=seeds.device))
        log_time = torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device)
        step = 0
        while len(rows) > 0 and step != self._num_steps:
            step += 1
            nfe[rows] += 1
            if self._num_steps is None:
                rows = self._hit(reader, text, rows, seeds, choices, edits, log_time, step)
            else:
                self._advance(reader, text, rows, seeds, choices, edits, self._num_steps, step)
            if edit is not None and step == edit.step:
                edits.append(text.write(edit))
        return text, edits, nfe

    def _advance(
        self,
        reader: Reader,
        text: Text,
        rows: Tensor,
        seeds: Tensor,
        choices: Choices,
        edits: list[Tensor],
        num_steps: int,
        step: int,
    ) -> None:
        """One of N steps."""
        start, end = (num_steps - step + 1) / num_steps, (num_steps - step) / num_steps
        beyond = max(end - self._correction / num_steps, 0.0)
        time = torch.full_like(rows, start, dtype=torch.float64)
        evaluation = self._evaluate(reader, text, rows, lambda _: time)
        chance = torch.full_like(rows, 1 - beyond / start, dtype=torch.float64)
        made = choices.of_step(evaluation, rows, chance, seeds[rows], step)
        edits.append(text.apply(rows, made, step))
        if beyond < end:
            back = torch.full_like(chance, (end - beyond) / (1 - beyond))
            reverse = draw_reverse(text.window(rows).editable, back, seeds[rows], step)
            edits.append(text.apply(rows, reverse, step))

    def _hit(
        self,
        reader: Reader,
        text: Text,
        rows: Tensor,
        seeds: Tensor,
        choices: Choices,
        edits: list[Tensor],
        log_time: Tensor,
        step: int,
    ) -> Tensor:
        """One edit of each row by first hitting; returns the rows that go on."""
        turn = Turn(
            choices=choices,
            rows=rows,
            window=text.window(rows),
            room=text.room(rows),
            log_time=log_time[rows],
            log_end=math.log(self._last_time),
            num_points=self._num_points,
            seeds=seeds[rows],
            step=step,
        )
        evaluation = self._evaluate(reader, text, rows, turn)
        goes_on = turn.log_next > -math.inf
        log_time[rows] = turn.log_next
        rows, evaluation = rows[goes_on], evaluation.of_rows(goes_on)
        if len(rows) > 0:
            edits.append(text.apply(rows, choices.one(evaluation, rows, seeds[rows], step), step))
        return text.changeable(rows)

    def _evaluate(self, reader: Reader, text: Text, rows: Tensor, choose: ChooseTime) -> Evaluation:
        """One evaluation of the network on some rows, at times chosen from their rates at others."""
        window = text.window(rows)
        cells = Cells.of(window.open_slots, window.editable)
        chosen: list[Tensor] = []

        def time(operations_at: OperationsAt) -> Tensor:
            chosen.append(choose(lambda times: operations_at(times)[:, reader.width :]))
            return chosen[0]

        scored, operation_logits = reader.read(rows, window, time)
        return Evaluation(
            input_ids=window.input_ids,
            cells=cells,
            scored=scored,
            rates=Rates.of(operation_logits, chosen[0].log()),
            room=text.room(rows),
            sampling=self._sampling,
            suppressed_ids=self._suppressed_ids,
        )
