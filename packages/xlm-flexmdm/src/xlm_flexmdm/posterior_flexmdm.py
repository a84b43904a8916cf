"""Which tokens of a clean text the columns of a noisy text can be: the posterior given both.

A noisy text z of n cells is embedded into a clean text x of m tokens by indices s_1 < ... < s_n with
z_c = MASK or z_c = x_{s_c}. Under the interpolant all embeddings of z have the same probability given x: each
has the same number of absent, masked and clean tokens, and the times do not depend on what a token is. So

    P(s_c = i | z, x) = (embeddings with s_c = i) / (embeddings),

which a forward-backward recursion counts in O(n m) steps.
"""

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor


def embedding_posterior(
    matches: Bool[Tensor, "rows cells target"], num_cells: Int[Tensor, " rows"]
) -> Float64[Tensor, "rows cells target"]:
    """P(s_c = i) under the uniform distribution over the embeddings of each row.

    With A_c(i) the number of ways to embed the cells up to c with c at i, and B_c(i) that of the cells after
    c into the tokens after i,

        A_c(i) = m_c(i) sum_{h < i} A_{c-1}(h),    B_c(i) = sum_{h > i} m_{c+1}(h) B_{c+1}(h),

    P is proportional to A_c(i) B_c(i). The counts exceed any float, hence the logarithms.

    Args:
        matches: Whether each cell can be each token, False at padding of either, shape (rows, cells, target).
        num_cells: Number of cells of each row; one embedding exists at least, shape (rows,).

    Returns:
        Probabilities, shape (rows, cells, target); zeros at cells that are padding.
    """
    log_matches = torch.zeros_like(matches, dtype=torch.float64).masked_fill(~matches, -torch.inf)
    rows, cells, target = matches.shape
    if cells == 0 or target == 0:
        return log_matches
    forward = [log_matches[:, 0]]
    for cell in range(1, cells):
        forward.append(log_matches[:, cell] + _sum_before(forward[-1]))

    last = (num_cells - 1).unsqueeze(1)
    backward = [log_matches.new_zeros(rows, target)]
    for cell in range(cells - 2, -1, -1):
        after = _sum_before((log_matches[:, cell + 1] + backward[-1]).flip(1)).flip(1)
        backward.append(torch.where(cell < last, after, 0.0))

    log_weights = torch.stack(forward, dim=1) + torch.stack(backward[::-1], dim=1)
    real = torch.arange(cells, device=matches.device) <= last
    return log_weights.softmax(-1).masked_fill(~real.unsqueeze(2), 0.0)


def expected_gaps(
    posterior: Float64[Tensor, "rows cells target"],
    num_cells: Int[Tensor, " rows"],
    num_tokens: Int[Tensor, " rows"],
) -> Float64[Tensor, "rows slots"]:
    """E[s_{c+1} - s_c - 1], the expected number of absent tokens in each slot.

    Args:
        posterior: P(s_c = i), from :func:`embedding_posterior`, shape (rows, cells, target).
        num_cells: Number of cells of each row, shape (rows,).
        num_tokens: Number of tokens of each row's clean text, shape (rows,).

    Returns:
        Expectations for the slot left of the first cell and those right of each cell, shape
        (rows, cells + 1); without meaning beyond.
    """
    index = torch.arange(posterior.shape[2], dtype=torch.float64, device=posterior.device)
    end = num_tokens.to(torch.float64).unsqueeze(1)
    where = torch.cat((torch.full_like(end, -1), posterior @ index, end), dim=1)
    # The text ends after the last cell that is none of padding.
    cell = torch.arange(where.shape[1], device=where.device)
    where = torch.where(cell > num_cells.unsqueeze(1), end, where)
    # Differences of rounded sums can fall below zero by rounding.
    return (where.diff(dim=1) - 1).clamp(min=0)


def _sum_before(log_values: Tensor) -> Tensor:
    """log of the sum of exp over the entries before each entry, along the last axis."""
    before = torch.full_like(log_values, -torch.inf)
    before[:, 1:] = log_values.logcumsumexp(1)[:, :-1]
    return before
