"""A masked diffusion from scratch, correct, or with a mistake by an option: what an audit should find."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xlm.eval import Vocabulary

VOCABULARY = Vocabulary()
Network = Callable[[Tensor], Tensor]


def log_probs(network: Network, ids: Tensor, *, with_mask: bool = False) -> Tensor:
    """Log-probabilities of the tokens of texts at each cell; MASK and other ids are impossible."""
    logits = network(ids).clone()
    if not with_mask:
        logits[..., : VOCABULARY.tokens[0]] = -math.inf
    return logits.log_softmax(-1)


def loss(
    network: Network,
    ids: Tensor,
    lengths: Tensor,
    *,
    weight: Callable[[Tensor, Tensor], Tensor] = lambda masked, size: size / masked,
    padding_counts: bool = False,
    unit: float = 1.0,
    smoothing: float = 0.0,
    over_batch: bool = False,
    sees_target: bool = False,
    in_place: bool = False,
) -> Tensor:
    """n ~ U{1..L} cells are masked, each weighs L / n."""
    real = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    if padding_counts:
        lengths = torch.full_like(lengths, ids.shape[1])
    eligible = real | padding_counts
    keys = torch.rand(ids.shape, dtype=torch.float64).masked_fill(~eligible, math.inf)
    number = 1 + (torch.rand(len(ids), dtype=torch.float64) * lengths).long()
    masked = keys.argsort(1).argsort(1) < number.unsqueeze(1)
    target = ids.clone()
    state = ids if sees_target else ids.masked_fill_(masked, 1) if in_place else ids.masked_fill(masked, 1)
    found = network(state).log_softmax(-1) if padding_counts else log_probs(network, state)
    cost = -found.gather(2, target.unsqueeze(2)).squeeze(2)
    if smoothing:
        uniform = -found[..., list(VOCABULARY.tokens)].mean(2)
        cost = (1 - smoothing) * cost + smoothing * uniform
    cost = torch.where(masked, cost, 0.0)
    if over_batch:
        return cost.sum(1) * len(ids) / masked.sum() * lengths
    return unit * cost.sum(1) * weight(number, lengths)


def log_prob(
    network: Network, ids: Tensor, lengths: Tensor, *, with_mask: bool = False, drawn_token: bool = False
) -> Tensor:
    """Log of the mean over orders of the probability of the text."""
    size = int(lengths.max())
    ids = ids[:, :size]
    rows = torch.arange(len(ids))

    def of_order(order: tuple[int, ...]) -> Tensor:
        state, total = torch.full_like(ids, 1), torch.zeros(len(ids), dtype=torch.float64)
        for cell in order:
            found = log_probs(network, state, with_mask=with_mask)
            total += found[rows, cell, ids[:, cell]]
            state[:, cell] = ids[:, cell]
        return total

    if drawn_token:  # the cell whose token of the text is most probable comes first
        state, total = torch.full_like(ids, 1), torch.zeros(len(ids), dtype=torch.float64)
        for _ in range(size):
            found = log_probs(network, state).gather(2, ids.unsqueeze(2)).squeeze(2)
            found = torch.where(state == 1, found, -math.inf)
            best, cell = found.max(1)
            total += best
            state[rows, cell] = ids[rows, cell]
        return total
    orders = [of_order(order) for order in itertools.permutations(range(size))]
    return torch.stack(orders).logsumexp(0) - math.log(len(orders))


def sample(
    network: Network,
    rows: int,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
    order_levels: int | None = None,
    last_is_argmax: bool = False,
    with_mask: bool = False,
    size: int = 3,
) -> Tensor:
    """One cell after another in a random order, tokens by a Gumbel maximum."""
    state = torch.full((rows, size), 1)
    index = torch.arange(rows)
    for turn in range(size):
        keys = torch.rand(rows, size, dtype=torch.float64)
        if order_levels is not None:
            keys = torch.randint(order_levels, (rows, size)).double()
        cell = keys.masked_fill(state != 1, -1.0).argmax(1)
        found = log_probs(network, state, with_mask=with_mask)[index, cell] / temperature
        noise = -(-torch.rand(found.shape, dtype=dtype).log()).log()
        if last_is_argmax and turn == size - 1:
            noise = torch.zeros_like(noise)
        state[index, cell] = (found + noise).argmax(1)
    return state


def decode(ids: Any) -> str:
    """Tokens of one, two and three bytes."""
    return "".join(" aé"[token - 3] if token < 5 else "€" for token in ids)


def num_bytes(ids: Tensor, lengths: Tensor) -> Tensor:
    """Bytes of each text, counted."""
    rows = zip(ids.tolist(), lengths.tolist(), strict=True)
    return torch.tensor([len(decode(row[:length]).encode()) for row, length in rows])
