"""Which masked cells to fill next: pure functions for families that unmask a row step by step.

Nothing here draws random numbers. A random order of the cells is ``take_top`` with uniform numbers as scores,
an order by confidence (MaskGIT, Chang et al. 2022, arXiv:2202.04200) is ``take_top`` with the ``confidence``
of the network.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

Confidence = Literal["top_prob", "margin", "entropy"]


def confidence(logits: Float[Tensor, "rows vocab"], kind: Confidence) -> Float64[Tensor, " rows"]:
    """How sure the network is of each cell, computed from p = softmax(logits) in float64.

    Args:
        logits: Unnormalised log-probabilities of the cells, shape (rows, vocab); -inf for tokens that are not
            allowed.
        kind: "top_prob" for the largest probability; "margin" for its distance to the second largest (Kim et
            al. 2025, arXiv:2502.06768); "entropy" for the negative entropy, sum of p log p.

    Returns:
        Higher is surer: in (0, 1], [0, 1] and [-log vocab, 0], shape (rows,).

    Raises:
        ValueError: If kind is none of the three.
    """
    probabilities = logits.to(torch.float64).softmax(-1)
    if kind == "top_prob":
        return probabilities.amax(-1)
    if kind == "margin":
        # Of a single token there is no second: its probability is 0.
        largest = torch.nn.functional.pad(probabilities, (0, 1)).topk(2).values
        return largest[:, 0] - largest[:, 1]
    if kind == "entropy":
        return -torch.special.entr(probabilities).sum(-1)
    raise ValueError(f"kind must be 'top_prob', 'margin' or 'entropy', got {kind!r}")


def take_top(
    scores: Float[Tensor, "batch length"],
    counts: Int[Tensor, " batch"],
    eligible: Bool[Tensor, "batch length"],
) -> Bool[Tensor, "batch length"]:
    """Mark the eligible cells with the highest scores of each row, among equals those on the left.

    Args:
        scores: Score of each cell, shape (batch, length); those of cells that are not eligible do not matter.
        counts: Cells to take in each row, shape (batch,); more than there are takes all eligible ones.
        eligible: True at the cells to choose from, shape (batch, length).

    Returns:
        True at the cells taken, shape (batch, length).
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    candidates = eligible.gather(-1, order)
    taken = candidates & (candidates.cumsum(-1) <= counts.unsqueeze(-1))
    return torch.zeros_like(eligible).scatter(-1, order, taken)


def unmask_counts(num_masked: Int[Tensor, " batch"], steps_left: int) -> Int[Tensor, " batch"]:
    """Cells to unmask now so that the masked cells spread evenly over the steps left, larger parts first.

    This is ceil(num_masked / steps_left): no step is idle while a cell is masked, and the last step leaves
    none. Ten cells in four steps are unmasked as 3, 3, 2, 2.

    Args:
        num_masked: Masked cells of each row, shape (batch,).
        steps_left: Steps to come with this one, at least 1.

    Returns:
        Number of cells for :func:`take_top`, shape (batch,).

    Raises:
        ValueError: If steps_left is below 1.
    """
    if steps_left < 1:
        raise ValueError(f"steps_left must be at least 1, got {steps_left}")
    return -(-num_masked // steps_left)
