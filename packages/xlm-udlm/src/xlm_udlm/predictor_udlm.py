"""Inference: the cells of a row start as uniform noise, and every step draws all of them anew."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, TokenSampling, require
from xlm.modules.records import (
    WRITE,
    Event,
    FullyTracedPrediction,
    Prediction,
    SamplerLikelihood,
    Targets,
    TracedPrediction,
    UserEdit,
    edits_of_step,
)
from xlm_udlm.canvas_udlm import Canvas, Notes
from xlm_udlm.loss_udlm import check_output
from xlm_udlm.replay_udlm import sampler_likelihood
from xlm_udlm.samplers_udlm import Rule, UDLMSampler
from xlm_udlm.types_udlm import Output, UDLMNetwork, UDLMPromptBatch
from xlm_udlm.vocabulary_udlm import CellVocabulary


class UDLMPredictor:
    """Generation by the reverse process of uniform-state diffusion (Schiff et al. 2024, arXiv:2412.10193).

    Every step evaluates every row that has free cells, since each may change until the end; given cells never
    do. Call it with the network in evaluation mode: dropout is the one thing that the seeds do not govern.

    Temperature, top-k and top-p act on the leave-one-out prediction, before the posterior is made of it: on
    what the other cells say about a cell, not on what probably stands there.

    Args:
        schedule: alpha, that of the training; it places the steps.
        sampler: The steps, or the name of a rule with its defaults.
        vocab_size: Number of ids, that of the network's logits.
        pad_id: Id of PAD, drawn only where the text may end; also fills the rows of the result.
        eos_id: Id of EOS, drawn only where the text may end; None if no token ends a text.
        suppressed_ids: Further ids that are never drawn: those of the loss.
        output: What the network's logits are: that of the loss.
        temperature: Of the prediction, at least 0; 0 takes the most probable token.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        sampler: UDLMSampler | Rule,
        vocab_size: int,
        pad_id: int,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        output: Output = "leave_one_out",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        check_output(output)
        self._sampler = sampler if isinstance(sampler, UDLMSampler) else UDLMSampler(sampler)
        self._schedule = schedule
        self._vocabulary = CellVocabulary(
            vocab_size=vocab_size, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._output: Output = output
        self._pad_id = pad_id
        self._eos_id = eos_id
        self._sampling = TokenSampling(temperature, top_k, top_p)

    @overload
    def __call__(
        self, model: UDLMNetwork, batch: UDLMPromptBatch, seeds: Tensor, *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
    @overload
    def __call__(
        self, model: UDLMNetwork, batch: UDLMPromptBatch, seeds: Tensor, *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: UDLMNetwork, batch: UDLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self,
        model: UDLMNetwork,
        batch: UDLMPromptBatch,
        seeds: Tensor,
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_udlm.UDLMDiT.forward`.
            batch: The given parts, from :class:`xlm_udlm.UDLMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits; "full" also records those behind the end, and probabilities:
                of each edit, and in ``place_log_prob`` of the cells that a step leaves as they are.

        Returns:
            The targets, up to the first EOS or PAD where the text may end. Edits of step 0 insert the cells
            of the final text, noise at those that are not given; later ones write over tokens that change.
        """
        canvas = Canvas.of(self._vocabulary, self._sampling, self._output, batch, seeds)
        start_ids = canvas.ids.clone()
        notes = Notes.of(canvas)
        edits: list[Tensor] = []
        self._fill(model, canvas, edits if trace else None, notes if trace == "full" else None)
        ids, lengths = canvas.targets(self._pad_id)
        nfe = self._nfe(batch)
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None)
        if trace == "full":
            every = canvas.trace(start_ids, edits, canvas.num_cells)
            return FullyTracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=notes.full(every))
        return TracedPrediction(
            ids=ids, lengths=lengths, nfe=nfe, trace=canvas.trace(start_ids, edits, lengths)
        )

    @torch.no_grad()
    def fork(
        self, model: UDLMNetwork, batch: UDLMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        No later step changes the cell of the edit.

        Raises:
            ValueError: If there is no such step or cell.
        """
        canvas = Canvas.of(self._vocabulary, self._sampling, self._output, batch, seeds)
        start_ids = canvas.ids.clone()
        num_steps, num_cells = len(self._sampler.steps(self._schedule)), int(canvas.num_cells[edit.row])
        require(1 <= edit.step <= num_steps, "step", edit.step, f"from 1 to {num_steps}")
        require(0 <= edit.position < num_cells, "position", edit.position, f"from 0 to {num_cells - 1}")
        edits: list[Tensor] = []
        self._fill(model, canvas, edits, None, edit)
        ids, lengths = canvas.targets(self._pad_id)
        trace = canvas.trace(start_ids, edits, lengths)
        return TracedPrediction(ids=ids, lengths=lengths, nfe=self._nfe(batch), trace=trace)

    def _fill(
        self,
        model: UDLMNetwork,
        canvas: Canvas,
        edits: list[Tensor] | None,
        notes: Notes | None,
        edit: UserEdit | None = None,
    ) -> None:
        """Take all steps, and append their edits."""
        steps = self._sampler.steps(self._schedule) if len(canvas.row) > 0 else []
        for turn, step in enumerate(steps, start=1):
            before, cells = canvas.ids.clone(), canvas.cells_of(step, turn)
            draw = canvas.draw if notes is None else notes.draw
            canvas.evaluate(model, step, cells, partial(draw, step, turn))
            if edit is not None and turn >= edit.step:
                column = canvas.batch["target_start"][edit.row] + edit.position
                canvas.ids[edit.row, column] = edit.token
            if edits is None:
                continue
            changed = canvas.ids != before
            row, column = changed.nonzero(as_tuple=True)
            edits.append(edits_of_step(turn, WRITE, row, column, canvas.ids[row, column]))
            if notes is not None:
                notes.add(changed[canvas.row, canvas.column], cells)

    def _nfe(self, batch: UDLMPromptBatch) -> Tensor:
        """(rows,) evaluations: those of all steps, where there is a free cell."""
        return batch["free"].any(1) * len(self._sampler.steps(self._schedule))

    @torch.no_grad()
    def likelihood(
        self,
        model: UDLMNetwork,
        batch: UDLMPromptBatch,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """Upper bound of -log of the probability with which this sampler writes each target.

        See :func:`xlm_udlm.replay_udlm.sampler_likelihood`.

        Raises:
            ValueError: If the sampler has Gibbs moves, an option is outside its range, or a target differs
                from the given tokens of its row.
        """
        return sampler_likelihood(
            model,
            self._sampler.steps(self._schedule),
            self._vocabulary,
            self._sampling,
            self._output,
            batch,
            targets,
            seeds,
            end_ids=(self._pad_id if self._eos_id is None else self._eos_id, self._pad_id),
            num_draws=num_draws,
            event=event,
        )
