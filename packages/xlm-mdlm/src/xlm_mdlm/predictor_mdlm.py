"""Inference: the cells of a row start masked and are written by a sampler, a window at a time."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, PromptCache, TokenSampling, prompt_sees_target, require
from xlm.modules.records import Prediction, TracedPrediction
from xlm.modules.samplers import Denoiser, RuleName, Sampler, Text, compose, fill, read_prompts
from xlm.modules.writer import Draw
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
        self._sampling = TokenSampling(temperature, top_k, top_p)
        self._window_length = window_length
        self._stride = stride

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
        self, model: MDLMNetwork, batch: MDLMPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> Prediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_mdlm.MDLMDiT.forward`.
            batch: The given parts and masks, from :class:`xlm_mdlm.MDLMPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits.

        Returns:
            The targets, up to the first EOS or PAD where the text may end. Edits of step 0 insert the cells
            of the final text, MASK at those that are not given; later ones write over the masks.
        """
        evaluate = partial(_evaluate, model)
        cells, prompts = batch, None
        if not prompt_sees_target(model):
            cells, prompts = read_prompts(evaluate, batch, prompt_of(batch))
        text = Text.of(cells, self._vocabulary)
        filled = fill(
            text,
            self._sampler,
            Denoiser(evaluate, self._vocabulary, self._schedule, self._mask_id, prompts),
            Draw(self._sampling),
            seeds,
            window_length=self._window_length,
            stride=self._stride,
        )
        ids, lengths = text.targets(self._pad_id)
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=filled.nfe, trace=None)
        return TracedPrediction(
            ids=ids, lengths=lengths, nfe=filled.nfe, trace=text.trace(filled.edits, lengths)
        )


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
