"""Counter-based random numbers: a number is a hash of (seed, stream, step, position), nothing else.

A stateful generator gives a row other numbers as soon as another row joins or leaves the batch, a worker is
added or a run is resumed. Here each row carries its own 64-bit seed and every number is computed on the
spot, so it does not depend on the batch, the number of workers or processes, or the order of the calls.

The hash chains SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014; finaliser: variant 13 of Stafford): with G the odd 64-bit integer next to 2^64 / golden ratio,

    state <- mix(state + (word + 1) * G)    for the words seed, stream, step, position, from state 0,

so the numbers along the positions are a SplitMix64 sequence whose starting point is hashed from the other
three. torch has no unsigned 64-bit arithmetic on every device: int64 products wrap around to the same bits,
and logical shifts are arithmetic ones with the sign bits cleared.

The numbers are for training and sampling, not for cryptography.

The times of training rows are spread evenly over (0, 1) in every batch of any size
(:func:`stratified_times`). The weight of a row's loss depends strongly on its time, so a batch whose times
happen to crowd gives a noisy gradient. Stratified times are usually made inside a batch, row i in the i-th of
its equal parts of (0, 1) (after Kingma et al. 2021, arXiv:2107.00630): they change with the batch size, the
number of processes and the accumulation of gradients, and row i is always in part i. Here the time belongs to
the row's place in the training stream.
"""

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the lowest 64 bits of ``word``."""
    return ((word + 2**63) % 2**64) - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_FIRST = _signed(0xBF58476D1CE4E5B9)
_MIX_SECOND = _signed(0x94D049BB133111EB)
_ONE = 0x3FF0000000000000
"""The bits of 1.0 in float64."""

# The place decides the upper bits of the 52 of a time, the row's seed the others.
_PLACE_BITS = 20
_SEED_BITS = 32

_SELECTED_FROM = 256
"""Numbers of a row from which selecting one takes less time than sorting them."""


def row_seeds(seed: int, epoch: int, indices: Int[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
    """Seed of each row, made from the run's seed, the epoch and the row's index in the global order.

    Args:
        seed: Seed of the run, any integer (taken modulo 2^64).
        epoch: Number of the epoch.
        indices: Index of each row in the global order of the epoch's examples, shape (rows,).

    Returns:
        One seed per row for :func:`uniform`, spread over the whole range of int64, shape (rows,).
    """
    state = torch.zeros_like(indices, dtype=torch.int64)
    for word in (seed, epoch, indices):
        state = _absorb(state, word)
    return state


def uniform(
    seeds: Int[Tensor, " rows"],
    num: int,
    *,
    step: int | Int[Tensor, " rows"],
    stream: int | Int[Tensor, " rows"],
) -> Float64[Tensor, "rows num"]:
    """Independent uniform numbers in the open interval (0, 1).

    The numbers are (k + 1/2) / 2^52 with k the upper 52 bits of the hash: the finest grid of float64 that is
    symmetric in (0, 1) and excludes both ends, so logarithms of u and of 1 - u are finite. Cast to float32
    they can round to 1.

    Args:
        seeds: Seed of each row, shape (rows,).
        num: Numbers per row; a longer draw begins with the numbers of a shorter one.
        step: Number of the sampling step, the same for all rows or one per row, shape (rows,).
        stream: Number of the purpose of the draw (say 0 for the time, 1 for the masked cells), so that two
            draws of a row in one step are independent; the same for all rows or one per row, shape (rows,).

    Returns:
        Uniform numbers, shape (rows, num). The same on every device that has float64.
    """
    state = torch.zeros_like(seeds, dtype=torch.int64)
    for word in (seeds, stream, step):
        state = _absorb(state, word)
    words = _absorb(state.unsqueeze(1), torch.arange(num, device=seeds.device))
    # The bits of 1 + k / 2^52; both the difference to 1 - 2^-53 and the result are exact.
    words >>= 12
    words &= 2**52 - 1
    words |= _ONE
    return words.view(torch.float64).sub_(1 - 2.0**-53)


def _absorb(state: Tensor, word: int | Tensor) -> Tensor:
    increment = _signed((word + 1) * _GOLDEN) if isinstance(word, int) else (word.long() + 1) * _GOLDEN
    return _mix_(state + increment)


def _mix_(words: Tensor) -> Tensor:
    """The finaliser in place: new tables would cost more than the arithmetic."""
    shifted = torch.empty_like(words)
    words ^= _shift_right(words, 30, out=shifted)
    words *= _MIX_FIRST
    words ^= _shift_right(words, 27, out=shifted)
    words *= _MIX_SECOND
    words ^= _shift_right(words, 31, out=shifted)
    return words


def _shift_right(words: Tensor, bits: int, *, out: Tensor) -> Tensor:
    torch.bitwise_right_shift(words, bits, out=out)
    out &= 2 ** (64 - bits) - 1
    return out


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
    if places is None:
        return uniform(seeds, 1, step=0, stream=stream)[:, 0]
    windows = places.long() >> torch.arange(_PLACE_BITS, device=places.device).unsqueeze(1)
    # One call, since its many small operations take longer than their numbers.
    hashed = uniform(torch.cat((seeds.long(), _coin_seeds(windows))), 2, step=0, stream=stream)
    drawn, coins = hashed[: len(seeds), 0], (hashed[len(seeds) :] * 2.0**52).long()
    # The coin of the digits d before is the highest of the 52 bits of a d + b (multiply-shift, Dietzfelbinger
    # 1996): fair, and independent for any two d. So one hash per digit and window serves all its parts. It is
    # moved to the sign, where adding the bit of the place flips it.
    factors, summands = (coins << 12).T.view(2, _PLACE_BITS, -1)
    flipped = summands + (windows << 63)
    digits = torch.zeros_like(drawn, dtype=torch.int64)
    for factor, summand in zip(factors.unbind(), flipped.unbind(), strict=True):
        digits = torch.add(torch.addcmul(summand, factor, digits) < 0, digits, alpha=2)
    # Integers, so that no rounding carries a time into the next part.
    cell = (digits << _SEED_BITS) + (drawn * 2.0**_SEED_BITS).long()
    return (cell.to(torch.float64) + 0.5) * 2.0 ** -(_PLACE_BITS + _SEED_BITS)


def _coin_seeds(windows: Tensor) -> Tensor:
    """(digits * rows,) seeds of the coins, from the window of 2^j places that holds each place."""
    bits = torch.arange(len(windows), device=windows.device).unsqueeze(1)
    return ((windows >> 1) * _PLACE_BITS + bits).flatten()


def nth_largest(values: Float[Tensor, "rows num"], ranks: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The number with a rank in each row, for collators.

    Args:
        values: Numbers, shape (rows, num).
        ranks: Rank of the number of each row, 0 for the largest, shape (rows,).

    Returns:
        Numbers, shape (rows,).
    """
    num = values.shape[1]
    if num < _SELECTED_FROM:
        return values.sort(dim=1, descending=True).values.gather(1, ranks.unsqueeze(1)).squeeze(1)
    rows = zip(values.unbind(), ranks.tolist(), strict=True)
    return torch.stack([row.kthvalue(num - rank).values for row, rank in rows])
