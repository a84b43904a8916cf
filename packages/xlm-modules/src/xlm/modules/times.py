"""Times of the training rows: spread evenly over (0, 1) in every batch of any size.

The weight of a row's loss depends strongly on its time, so a batch whose times happen to crowd gives a noisy
gradient. Stratified times are usually made inside a batch, row i in the i-th of its equal parts of (0, 1)
(after Kingma et al. 2021, arXiv:2107.00630): they change with the batch size, the number of processes and the
accumulation of gradients, and row i is always in part i. Here the time belongs to the row's place in the
training stream.
"""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from xlm.modules.random import uniform

# The place decides the upper bits of the 52 of a time, the row's seed the others.
_PLACE_BITS = 20
_SEED_BITS = 32


def stratified_times(
    seeds: Int[Tensor, " rows"], places: Int[Tensor, " rows"] | None, *, stream: int
) -> Float64[Tensor, " rows"]:
    """One uniform time per row in (0, 1); with places, evenly spread over any aligned window of places.

    For each k up to 20, the times of the places m 2^k .. (m + 1) 2^k - 1 lie one in each of the 2^k equal
    parts of (0, 1), so a global batch of 2^k rows is stratified however it is split over processes and
    micro-batches, and so is a run of batches.

    The times are a van der Corput sequence, whose j-th binary digit is bit j of the place, scrambled in the
    manner of Owen ("Randomly permuted (t,m,s)-nets and (t,s)-sequences", 1995): digit j is flipped by a coin
    hashed from the digits before it and the bits of the place above j. Two neighbouring windows of 2^j places
    share the coin of each part, so that of their two times in it one lies in either half. Apart from this the
    coins are independent: windows meet the parts in different orders, and times lie anywhere in their parts.

    Args:
        seeds: Seed of each row, shape (rows,). With places it decides the last digits only: a place has
            nearly the same time in every run.
        places: Place of each row in the training stream over all processes, from 0, shape (rows,); None for
            independent times.
        stream: Number of the purpose of the draw, see :func:`xlm.modules.uniform`.

    Returns:
        Times on the grid of :func:`xlm.modules.uniform`, shape (rows,).
    """
    drawn = uniform(seeds, 1, step=0, stream=stream)[:, 0]
    if places is None:
        return drawn
    places = places.long()
    factors, summands = _coin_tables(places, stream)
    place_bits = places >> torch.arange(_PLACE_BITS, device=places.device).unsqueeze(1)
    # The coin of a digit is moved to the sign, where adding the bit of the place flips it.
    factors, summands = factors << 12, (summands << 12) + (place_bits << 63)
    digits = torch.zeros_like(places)
    for factor, summand in zip(factors.unbind(), summands.unbind(), strict=True):
        digits = torch.add(torch.addcmul(summand, factor, digits) < 0, digits, alpha=2)
    # Integers, so that no rounding carries a time into the next part.
    cell = (digits << _SEED_BITS) + (drawn * 2.0**_SEED_BITS).long()
    return (cell.to(torch.float64) + 0.5) * 2.0 ** -(_PLACE_BITS + _SEED_BITS)


def _coin_tables(places: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    """Factors a and summands b of the coins of each digit, each of shape (digits, rows).

    The coin of the digits d before is the highest of the 52 bits of a d + b (multiply-shift, Dietzfelbinger
    1996): fair, and independent for any two d. So one hash per digit and window serves all its parts.
    """
    bits = torch.arange(_PLACE_BITS, device=places.device).unsqueeze(1)
    windows = (places >> (bits + 1)) * _PLACE_BITS + bits
    hashed = (uniform(windows.flatten(), 2, step=0, stream=stream) * 2.0**52).long()
    factors, summands = hashed.T.view(2, _PLACE_BITS, -1)
    return factors, summands
