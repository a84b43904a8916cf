"""Inference: the blocks of a row are written from left to right, the cells of each by a sampler."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import BlockCache, NoiseSchedule, TokenSampling
from xlm.modules.records import (
    Event,
    FullyTracedPrediction,
    Prediction,
    SamplerLikelihood,
    Targets,
    Trace,
    TracedPrediction,
    TrajectoryLogProbs,
    UserEdit,
)
from xlm.modules.samplers import (
    Automaton,
    Denoiser,
    RuleName,
    Sampler,
    check_constraint,
    compose,
    fork,
    record,
    sampler_likelihood,
    trajectory_log_probs,
)
from xlm_bd3lm.datamodule_bd3lm import check_window
from xlm_bd3lm.generation_bd3lm import BlockGeneration
from xlm_bd3lm.past_bd3lm import Past, PastOfRows
from xlm_bd3lm.types_bd3lm import BD3LMNetwork, BD3LMPromptBatch
from xlm_bd3lm.vocabulary_bd3lm import CellVocabulary


class BD3LMPredictor:
    """Generation by block diffusion (Arriola et al. 2025, arXiv:2503.09573, algorithm 2).

    A sampler writes the first block, then the second, and so on, until the text has an end or
    max_target_length of the prompts is reached, where a text without end is cut. An evaluation is one of the
    D cells of a block; the first of each block also evaluates what stands before it and was not evaluated
    without masks yet, prompt and BOS or the finished block, and keeps its keys and values. Call it with the
    network in evaluation mode: dropout is the one thing that the seeds do not govern.

    Args:
        schedule: alpha; it places the steps of the samplers that follow the process.
        sampler: Which cells of a block are written when: a sampler of
            :func:`xlm.modules.samplers.compose`, or the name of a rule, with ``num_steps`` for a block.
        mask_id: Id of MASK, which is never drawn.
        pad_id: Id of PAD, drawn only where the text may end, but not in the first cell of a block; also fills
            the rows of the result.
        eos_id: Id of EOS, drawn only where the text may end; None if no token ends a text.
        block_length: D, that of the collators, at least 1.
        suppressed_ids: Further ids that are never drawn: those of the loss.
        temperature: Of p_theta, at least 0; 0 takes the most probable token.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.
        constraint: The texts to write, such as those of :func:`xlm.modules.samplers.match_expression`, whose
            weights are in the prediction; None for all.
        window_length: W, for texts longer than those of the training, a multiple of D: a block sees prompt,
            BOS and the W / D - 1 blocks before it, which are evaluated as if there were no others, beside the
            first evaluation of each block beyond the first W cells. None for no limit.
        cache: Whether the keys and values of clean tokens are kept. Without, they are computed anew in each
            evaluation: the same distribution, for networks that take no cache.

    Raises:
        ValueError: If an option is outside its range, or MASK is also PAD or EOS.
    """

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        sampler: Sampler | RuleName,
        mask_id: int,
        pad_id: int,
        eos_id: int | None,
        block_length: int,
        suppressed_ids: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        constraint: Automaton | None = None,
        window_length: int | None = None,
        cache: bool = True,
    ) -> None:
        check_window(window_length, block_length)
        self._schedule = schedule
        self._sampler = sampler if isinstance(sampler, Sampler) else compose(sampler)
        self._vocabulary = CellVocabulary(
            mask_id=mask_id, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._mask_id = mask_id
        self._pad_id = pad_id
        self._eos_id = eos_id
        self._block_length = block_length
        self._sampling = TokenSampling(temperature, top_k, top_p)
        check_constraint(self._sampler, constraint)
        self._constraint = constraint
        self._window_length = window_length
        self._cache = cache

    @overload
    def __call__(
        self, model: BD3LMNetwork, batch: BD3LMPromptBatch, seeds: Tensor, *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
    @overload
    def __call__(
        self, model: BD3LMNetwork, batch: BD3LMPromptBatch, seeds: Tensor, *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: BD3LMNetwork, batch: BD3LMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self,
        model: BD3LMNetwork,
        batch: BD3LMPromptBatch,
        seeds: Tensor,
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_bd3lm.BD3LMDiT.forward`.
            batch: The given parts and masks, from :class:`xlm_bd3lm.BD3LMPromptCollator` of the same
                block_length.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits; "full" also records those behind the end, and probabilities.

        Raises:
            ValueError: If a row has no text that the constraint allows.

        Returns:
            The targets, up to the first EOS or PAD where the text may end. Edits of step 0 insert the cells
            of the final text, MASK at those that are not given; later ones write over the masks.
        """
        generation = self._generation(model, batch)
        if trace == "full":
            return _cut(record(generation, batch, seeds), batch, self._pad_id)
        text, filled, log_weight = generation.write(_within_limit(batch), seeds)
        ids, lengths = text.targets(self._pad_id)
        made = Prediction(
            ids=ids,
            lengths=lengths,
            nfe=filled.nfe,
            trace=None,
            calls=filled.calls,
            states=filled.states,
            log_weight=log_weight,
        )
        return made.with_trace(text.trace(filled.edits, lengths)) if trace else made

    @torch.no_grad()
    def likelihood(
        self,
        model: BD3LMNetwork,
        batch: BD3LMPromptBatch,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
    ) -> SamplerLikelihood:
        """-log of the probability with which this sampler writes each target, with every option counted.

        Exact where the order of the cells is a function of the text and no cell is left open, otherwise an
        upper bound; see :func:`xlm.modules.samplers.sampler_likelihood` for the arguments.

        Raises:
            ValueError: If the sampler has no likelihood, an option is outside its range, or a target differs
                from the given tokens of its row.
        """
        generation = self._generation(model, batch)
        texts = _within_limit(batch)
        return sampler_likelihood(generation, texts, targets, seeds, num_draws=num_draws, event=event)

    @torch.no_grad()
    def fork(
        self, model: BD3LMNetwork, batch: BD3LMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        Raises:
            ValueError: If there is a constraint, the row has no such step, its cell is in another block, or
                the token is MASK.
        """
        generation = self._generation(model, batch)
        return fork(generation, _within_limit(batch), seeds, edit)

    def trajectory_log_probs(
        self, model: BD3LMNetwork, batch: BD3LMPromptBatch, trace: Trace, seeds: Tensor, /
    ) -> TrajectoryLogProbs:
        """Log-probabilities of the tokens of a generation with ``trace="full"``, with gradient.

        Raises:
            ValueError: If the order of the cells depends on drawn tokens, or the sampler with these seeds
                writes other cells than the trace.
        """
        generation = self._generation(model, batch)
        return trajectory_log_probs(generation, batch, trace, seeds)

    def _generation(self, model: BD3LMNetwork, batch: BD3LMPromptBatch) -> BlockGeneration:
        """What generates the rows of a batch."""
        return BlockGeneration(
            sampler=self._sampler,
            denoiser=Denoiser(self._evaluate, self._vocabulary, self._schedule, self._mask_id),
            sampling=self._sampling,
            end_ids=self._vocabulary.end_ids,
            eos_id=self._eos_id,
            pad_id=self._pad_id,
            window_length=self._window_length,
            constraint=self._constraint,
            prompt_ids=batch["prompt_ids"],
            prompt_mask=batch["prompt_mask"],
            cells=batch["attention_mask"],
            block_length=self._block_length,
            make_past=lambda ids, blocks: Past(model, ids, blocks, BlockCache() if self._cache else None),
        )

    def _evaluate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        alpha: Tensor,
        positions: Tensor,
        *,
        cache: PastOfRows,
    ) -> Tensor:
        """The logits (places, vocab) of a block of each row; the network does not see the time."""
        logits = cache.logits(input_ids, attention_mask, positions)
        return self._vocabulary.without_pads(logits, positions % input_ids.shape[1] == 0)


def _within_limit(batch: BD3LMPromptBatch) -> BD3LMPromptBatch:
    """The rows whose cells are those up to the limit of their texts."""
    column = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    inside = batch["attention_mask"] & (column < batch["max_length"].unsqueeze(1))
    return {**batch, "attention_mask": inside}


def _cut(found: FullyTracedPrediction, batch: BD3LMPromptBatch, pad_id: int) -> FullyTracedPrediction:
    """The prediction with texts up to their limits; its trace keeps what was written behind them."""
    lengths = found.lengths.minimum(batch["max_length"])
    ids = found.ids[:, : int(lengths.max()) if len(lengths) > 0 else 0]
    behind = torch.arange(ids.shape[1], device=ids.device) >= lengths.unsqueeze(1)
    return replace(found, ids=ids.masked_fill(behind, pad_id), lengths=lengths)
