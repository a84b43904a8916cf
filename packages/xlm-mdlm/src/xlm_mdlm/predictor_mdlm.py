"""Inference: the cells of a row start masked and are written by a sampler, a window at a time."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, PromptCache, TokenSampling, prompt_sees_target, require
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
    Coupling,
    Denoiser,
    Generation,
    PromptBatch,
    RuleName,
    Sampler,
    check_constraint,
    compose,
    fork,
    read_prompts,
    record,
    sampler_likelihood,
    trajectory_log_probs,
)
from xlm_mdlm.types_mdlm import MDLMNetwork, MDLMPromptBatch, call_model, noise_of_alpha, prompt_of
from xlm_mdlm.vocabulary_mdlm import CellVocabulary


class MDLMPredictor:
    """Generation by the reverse process of masked diffusion (Sahoo et al. 2024, arXiv:2406.07524, section 4).

    A row whose text is complete leaves the batch, and no row is evaluated in a step that writes nothing in
    it. Call it with the network in evaluation mode: dropout is the one thing that the seeds do not govern.

    *Longer texts than the network was trained on* are written semi-autoregressively: first the cells of one
    window, then window after window with its start moved by ``stride`` cells, so that the last window_length
    - stride cells written are the clean context of the next ones. Prompt and BOS stand left of every window
    (in the published code they go out of sight like any other token).

    Args:
        schedule: alpha, that of the training.
        sampler: Which cells are written when: a sampler of :func:`xlm.modules.samplers.compose`, or the name
            of a rule.
        mask_id: Id of MASK, which is never drawn.
        pad_id: Id of PAD, drawn only where the text may end; also fills the rows of the result.
        eos_id: Id of EOS, drawn only where the text may end; None if no token ends a text.
        suppressed_ids: Further ids that are never drawn: those of the loss.
        temperature: Of p_theta, at least 0; 0 takes the most probable token.
        top_k: Tokens to choose from; None for all.
        top_p: Mass of the tokens to choose from; None for all.
        constraint: The texts to write, such as those of :func:`xlm.modules.samplers.match_expression`, whose
            weights are in the prediction; None for all.
        window_length: The most cells to show to the network at once; None for no limit.
        stride: Cells that each further window adds, from 1 to window_length; needed with window_length.

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
        suppressed_ids: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        constraint: Automaton | None = None,
        window_length: int | None = None,
        stride: int | None = None,
    ) -> None:
        if window_length is None:
            require(stride is None, "stride", stride, "None without window_length")
        else:
            require(window_length >= 1, "window_length", window_length, "None or at least 1")
            in_range = stride is not None and 1 <= stride <= window_length
            require(in_range, "stride", stride, f"from 1 to window_length={window_length}")
        self._schedule = schedule
        self._sampler = sampler if isinstance(sampler, Sampler) else compose(sampler)
        self._vocabulary = CellVocabulary(
            mask_id=mask_id, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._mask_id = mask_id
        self._pad_id = pad_id
        self._eos_id = eos_id
        self._sampling = TokenSampling(temperature, top_k, top_p)
        check_constraint(self._sampler, constraint)
        self._constraint = constraint
        self._window_length = window_length
        self._stride = stride

    @overload
    def __call__(
        self, model: MDLMNetwork, batch: MDLMPromptBatch, seeds: Tensor, *, trace: Literal["full"]
    ) -> FullyTracedPrediction: ...
    @overload
    def __call__(
        self, model: MDLMNetwork, batch: MDLMPromptBatch, seeds: Tensor, *, trace: Literal[True]
    ) -> TracedPrediction: ...
    @overload
    def __call__(
        self, model: MDLMNetwork, batch: MDLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction: ...
    @torch.no_grad()
    def __call__(
        self,
        model: MDLMNetwork,
        batch: MDLMPromptBatch,
        seeds: Tensor,
        *,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_mdlm.MDLMDiT.forward`.
            batch: The given parts and masks, from :class:`xlm_mdlm.MDLMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits; "full" also records those behind the end, and probabilities.

        Raises:
            ValueError: If a row has no text that the constraint allows.

        Returns:
            The targets, up to the first EOS or PAD where the text may end. Edits of step 0 insert the cells
            of the final text, MASK at those that are not given; later ones write over the masks.
        """
        generation, cells = self._generation(model, batch)
        if trace == "full":
            return record(generation, cells, seeds)
        text, filled, log_weight = generation.write(cells, seeds)
        ids, lengths = text.targets(self._pad_id)
        calls = filled.calls if prompt_sees_target(model) else filled.calls + 1
        made = Prediction(
            ids=ids,
            lengths=lengths,
            nfe=filled.nfe,
            trace=None,
            calls=calls,
            states=filled.states,
            log_weight=log_weight,
        )
        return made.with_trace(text.trace(filled.edits, lengths)) if trace else made

    @torch.no_grad()
    def likelihood(
        self,
        model: MDLMNetwork,
        batch: MDLMPromptBatch,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int = 1,
        event: Event = "text",
        coupling: Coupling = "independent",
    ) -> SamplerLikelihood:
        """-log of the probability with which this sampler writes each target, with every option counted.

        Exact where the order of the cells is a function of the text and no cell is left open, otherwise an
        upper bound; see :func:`xlm.modules.samplers.sampler_likelihood` for the arguments.

        Raises:
            ValueError: If the sampler has no likelihood, an option is outside its range, or a target differs
                from the given tokens of its row.
        """
        generation, cells = self._generation(model, batch)
        return sampler_likelihood(
            generation, cells, targets, seeds, num_draws=num_draws, event=event, coupling=coupling
        )

    @torch.no_grad()
    def fork(
        self, model: MDLMNetwork, batch: MDLMPromptBatch, seeds: Tensor, edit: UserEdit, /
    ) -> TracedPrediction:
        """Generate with an edit of the user and the same noise: up to its step, the text is that without it.

        Raises:
            ValueError: If there is a constraint, the row has no such step, the sampler does not see the cell
                then, or the token is MASK.
        """
        generation, cells = self._generation(model, batch)
        return fork(generation, cells, seeds, edit)

    def trajectory_log_probs(
        self, model: MDLMNetwork, batch: MDLMPromptBatch, trace: Trace, seeds: Tensor, /
    ) -> TrajectoryLogProbs:
        """Log-probabilities of the tokens of a generation with ``trace="full"``, with gradient.

        Raises:
            ValueError: If the order of the cells depends on drawn tokens, or the sampler with these seeds
                writes other cells than the trace.
        """
        generation, cells = self._generation(model, batch)
        return trajectory_log_probs(generation, cells, trace, seeds)

    def _generation(self, model: MDLMNetwork, batch: MDLMPromptBatch) -> tuple[Generation, PromptBatch]:
        """What generates, and the rows without a prompt that has been read."""
        evaluate = partial(_evaluate, model)
        cells, prompts = batch, None
        if not prompt_sees_target(model):
            cells, prompts = read_prompts(
                evaluate, batch, prompt_of(batch["input_ids"], batch["target_start"])
            )
        generation = Generation(
            sampler=self._sampler,
            denoiser=Denoiser(evaluate, self._vocabulary, self._schedule, self._mask_id, prompts),
            sampling=self._sampling,
            end_ids=self._vocabulary.end_ids,
            eos_id=self._eos_id,
            pad_id=self._pad_id,
            constraint=self._constraint,
            window_length=self._window_length,
            stride=self._stride,
        )
        return generation, cells


def _evaluate(
    model: MDLMNetwork,
    input_ids: Tensor,
    attention_mask: Tensor,
    alpha: Tensor,
    positions: Tensor,
    **prompt: PromptCache,
) -> Tensor:
    """The logits (cells, vocab) at the noise of each row."""
    return call_model(model, input_ids, attention_mask, noise_of_alpha(alpha), positions=positions, **prompt)
