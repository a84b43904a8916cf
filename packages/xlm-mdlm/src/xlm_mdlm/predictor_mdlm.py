"""Inference: the cells of a row start masked and are written by a sampler, a window at a time."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, TokenSampling, require, row_seeds
from xlm.modules.records import Prediction, TracedPrediction
from xlm_mdlm.canvas_mdlm import Canvas, Denoiser
from xlm_mdlm.samplers_mdlm import Sampler
from xlm_mdlm.text_mdlm import Text, Window
from xlm_mdlm.types_mdlm import MDLMNetwork, MDLMPromptBatch
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
        sampler: :class:`xlm_mdlm.Ancestral`, :class:`xlm_mdlm.FirstHitting`, :class:`xlm_mdlm.Remasking` or
            :class:`xlm_mdlm.ConfidenceOrder`.
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
        sampler: Sampler,
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
        self._sampler = sampler
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
        denoiser = Denoiser(model, self._vocabulary, self._sampling)
        text = Text.of(batch, self._vocabulary)
        nfe = torch.zeros_like(seeds)
        edits: list[Tensor] = []
        num_calls = 0
        for number, span in enumerate(text.spans(self._window_length, self._stride or 1)):
            window = text.window(span)
            if len(window.rows) == 0:
                continue
            # Columns and turns are the same in every window, so its draws get seeds of their own.
            own_seeds = seeds if number == 0 else row_seeds(number, 0, seeds)
            canvas = Canvas(
                denoiser=denoiser,
                input_ids=window.show(text.input_ids),
                attention_mask=window.exists,
                masked=window.show(text.masked) & window.exists,
                may_end=window.show(text.may_end) & window.exists,
                seeds=own_seeds[window.rows],
                nfe=torch.zeros_like(window.rows),
                mask_id=self._mask_id,
            )
            self._sampler(canvas, self._schedule)
            text.put(window, canvas.input_ids, canvas.masked)
            nfe[window.rows] += canvas.nfe
            edits += [_edits_of_text(edit, window, num_calls) for edit in canvas.edits]
            num_calls += int(canvas.nfe.max())
        ids, lengths = text.targets(self._pad_id)
        if not trace:
            return Prediction(ids=ids, lengths=lengths, nfe=nfe, trace=None)
        return TracedPrediction(ids=ids, lengths=lengths, nfe=nfe, trace=text.trace(edits, lengths))


def _edits_of_text(edits: Tensor, window: Window, num_calls: int) -> Tensor:
    """(4, edits) edits of a window in rows and columns of the text, with steps behind the calls before it."""
    turn, row, column, token = edits
    return torch.stack([num_calls + turn, window.rows[row], window.source[row, column], token])
