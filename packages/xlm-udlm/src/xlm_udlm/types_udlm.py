"""What the parts of the uniform-state diffusion language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
logits are computed.

A row is ``prompt... [BOS] target...`` with padding on its right. The columns of the target are its *cells*:
one for each target token or, with a fixed width, as many as the width, those behind the text holding EOS and
then PAD; see :mod:`xlm_udlm.layout_udlm`. A cell is *free* if its token is not given. A PAD in a cell is an
ordinary token, attended to, noised and predicted; the padding on the right of a row is none of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules import NoiseSchedule, Readout, call_with_readout
from xlm.modules.records import LossOutput

T = TypeVar("T")

NUM_LEVELS = 4
"""Intervals of the noise 1 - alpha of a row into which losses are binned in metrics."""
_LEAST_ALPHA = 1e-4

Output = Literal["leave_one_out", "denoiser"]
"""What the softmax of the network's logits is, see :mod:`xlm_udlm.posterior_udlm`."""


class UDLMBatch(TypedDict):
    """Rows x_t with some cells noised, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """x_t: the rows with random tokens at noised cells."""
    attention_mask: Bool[Tensor, "rows length"] | None
    """False at the padding on the right; None if there is none."""
    segment_ids: NotRequired[Int[Tensor, "rows length"]]
    """Of packed blocks: the document of each token, which sees no other; -1 at padding."""
    target_ids: Int[Tensor, "rows length"]
    """x_0: the same rows without noise."""
    cell_row: Int[Tensor, " cells"]
    """Row of each free cell, noised or not. Precomputed in the collator: nonzero() on a GPU forces a
    synchronisation."""
    cell_column: Int[Tensor, " cells"]
    """Column of each free cell."""
    may_end: Bool[Tensor, "rows length"]
    """True at cells where EOS and PAD are possible tokens."""
    one_minus_alpha: Float64[Tensor, " rows"]
    """1 - alpha(t), the probability that a cell is noised. Not computed from alpha, which near t = 0 would
    leave few of its digits."""
    weight: Float64[Tensor, " rows"]
    """What the sum of F / K over the cells of a row is multiplied by: -alpha'(t) / alpha(t), over the density
    of the times."""
    noise: Float64[Tensor, " rows"]
    """-log alpha(t), the input of a network that is conditioned on time."""
    num_free: Int[Tensor, " rows"]
    """Free cells of each row."""
    num_tokens: Int[Tensor, " rows"]
    """Raw target tokens that are not given."""
    models_length: Bool[Tensor, " rows"]
    """Whether the cells have a fixed width, so that the length of the target is predicted too."""
    blend_ids: NotRequired[Int[Tensor, "cells tokens"]]
    """With a curriculum: tokens whose embeddings the network reads at each free cell in place of x_t's."""
    blend_weights: NotRequired[Float[Tensor, "cells tokens"]]
    """What they are multiplied by, which adds up to 1."""
    num_draws: NotRequired[Int[Tensor, ""]]
    """The number of consecutive rows made from one example. Missing in training batches, which follow the
    training schedule and therefore have no likelihood."""


class UDLMPromptBatch(TypedDict):
    """The given part of each row, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """Prompt, BOS, given target tokens, and PAD at the free cells, which is not read there."""
    attention_mask: Bool[Tensor, "rows length"]
    """False at the padding on the right."""
    free: Bool[Tensor, "rows length"]
    """True at cells to fill."""
    may_end: Bool[Tensor, "rows length"]
    """True at cells where EOS and PAD are possible tokens, and end the text."""
    target_start: Int[Tensor, " rows"]
    """First cell: the column right of BOS."""


@dataclass(frozen=True)
class UDLMLossOutput(LossOutput):
    """The loss as a sum with its normaliser, and counts for :class:`xlm_udlm.UDLMMetrics`.

    ``loss_sum`` is an estimate of the sum of the rows' bounds in nats, ``loss_count`` the number of free
    cells; the one term is ``token``.
    """

    num_noised: Int[Tensor, ""]
    """Free cells whose token differs from the clean one."""
    num_correct: Int[Tensor, ""]
    """Free cells whose most probable token, given the other cells, is the clean one."""
    cells_by_level: Int[Tensor, " levels"]
    """Free cells by the noise 1 - alpha of their row, in NUM_LEVELS equal intervals of (0, 1]."""
    entropy_by_level: Float[Tensor, " levels"]
    """Their -log p of the clean token summed, without weights, in nats."""


UDLMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def read_cells(
    model: UDLMNetwork,
    readout: Readout[T],
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    noise: Float[Tensor, " rows"],
    *,
    positions: Int[Tensor, " cells"],
    **more: Any,
) -> T:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`UDLMDiT.forward`."""
    return call_with_readout(model, readout, input_ids, attention_mask, noise, positions=positions, **more)


# Copied from xlm_mdlm.types_mdlm.noise_of_alpha
def noise_of_alpha(alpha: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """-log alpha, the total noise: the input of a time-conditioned network.

    The posteriors depend on t through alpha_t alone, so it determines as much as t does. It grows without
    limit as alpha falls to 0 and is cut at alpha = 1e-4, where next to everything is noise.

    Args:
        alpha: Probabilities that a cell is not noised, in [0, 1], of any shape.

    Returns:
        Noise in [0, 9.22], of the same shape.
    """
    # Rounding can make alpha exceed 1 and -log(1) is -0: neither sign is valid.
    return -alpha.clamp(_LEAST_ALPHA, 1.0).log() + 0.0


def one_minus_alpha(schedule: NoiseSchedule, time: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """1 - alpha(t) with all its digits near t = 0, as -alpha'(t) over the schedule's loss weight."""
    alpha = schedule.alpha(time)
    ratio = -schedule.d_alpha(time) / schedule.loss_weight(time)
    return (1 - alpha).where(alpha < 0.5, ratio)
