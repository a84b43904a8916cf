"""Cross entropy of a linear head, without the table of logits.

A token head maps hidden states h_c to logits z_c = W h_c + b, of which a loss needs -log p at a few tokens.
The table of all logits (cells * vocabulary) and its gradient are larger than everything else in a training
step. Here the cells go through one buffer in pieces, and each piece leaves behind its sums and its share of
the gradient

    dL / dz_c[v] = a_c softmax(z_c)[v] - sum of the weights of the targets v at c, a_c = sum of all of them

before the next one overwrites it: the forward pass makes the gradients, the backward pass multiplies them by
one number. (The idea is that of the Liger kernels, arXiv:2410.10989, section 3.2, and of Cut Cross-Entropy,
arXiv:2411.09009.)

A loss describes what it wants as :class:`TokenTargets` and hands the network a readout: a function of the
hidden states and the head, which the network calls in place of the head (:func:`call_with_readout`).
:func:`linear_cross_entropy` computes the targets from both, :func:`cross_entropy_of_logits` from logits, by
differentiable steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules.compiling import uncompiled
from xlm.modules.examples import check_vocabulary
from xlm.modules.linear import is_fused, product
from xlm.modules.sampling import at_least_float32, suppress_tokens

T = TypeVar("T")
Readout = Callable[[Float[Tensor, "cells d_model"], nn.Module], T]
"""What is made of the hidden states of the cells and the head, in place of the head's logits."""
_LOGITS_AT_ONCE = 2**23
"""Logits in the buffer: 32 MiB in float32, enough rows for fast matrix products."""


@dataclass(frozen=True)
class TokenTargets:
    """Tokens whose -log p make up a loss, and over what p is normalised.

    Axes: ``cells`` places of the head, ``targets`` weighted tokens.
    """

    token: Int[Tensor, " targets"]
    """Ids of the tokens."""
    weight: Float[Tensor, " targets"]
    """What -log p of each token is multiplied by in the loss; where it is 0, an impossible token is allowed.
    No gradient flows to it."""
    cell: Int[Tensor, " targets"] | None = None
    """Number of the cell in which each token is scored; None if there is one token for each cell."""
    group_sizes: Sequence[int] | None = None
    """Numbers of consecutive cells whose tokens share one softmax: p(cell, token) sums to 1 over a group.
    None for a softmax in each cell. Plain numbers: reading them from a device would synchronise with it."""
    suppressed_ids: Sequence[int] = ()
    """Tokens of probability 0."""
    end_ids: Sequence[int] = ()
    """Tokens of probability 0 where ``may_end`` is False, even if suppressed elsewhere."""
    may_end: Bool[Tensor, " cells"] | Bool[Tensor, "cells ends"] | None = None
    """Where ``end_ids`` are possible: all of them, or each one in a column of its own."""
    wants_best: bool = False
    """Whether the most probable token of each cell is asked for (another pass over the logits)."""


class TokenScores(NamedTuple):
    """What became of :class:`TokenTargets`."""

    loss: Float[Tensor, ""]
    """Sum over the targets of weight * -log p, in float32 at least: the only part that has a gradient."""
    log_probs: Float[Tensor, " targets"]
    """log p of each target; -inf for an impossible one, and then the loss is infinite."""
    best: Int[Tensor, " cells"] | None
    """Most probable token of each cell, the first among equals; None if not asked for."""
    vocab_size: int
    """Number of tokens of the head."""


def read_tokens(
    hidden: Float[Tensor, "*cells d_model"], head: nn.Module, readout: Readout[Any] | None
) -> Any:
    """The last step of a network's forward pass, after :func:`xlm.modules.states_at`: its token head.

    Args:
        hidden: Hidden states, shape (cells, d_model) or (rows, length, d_model).
        head: Hidden states to logits.
        readout: What to make of the hidden states and the head; None for the logits.

    Returns:
        Logits, shape (cells, vocab) or (rows, length, vocab); or what ``readout`` gives.
    """
    return head(hidden) if readout is None else _call_readout(readout, hidden, head)


@uncompiled  # loops over pieces, random numbers, a sampler's branches
def _call_readout(readout: Readout[T], hidden: Tensor, head: nn.Module) -> T:
    return readout(hidden, head)


def takes_readout(model: Callable[..., Any]) -> bool:
    """Whether a network takes a readout, which it says by its attribute ``takes_readout = True``."""
    return bool(getattr(model, "takes_readout", False))


def call_with_readout(model: Callable[..., Any], readout: Readout[T], *arguments: Any, **named: Any) -> T:
    """Call a network that returns logits, but for another readout.

    A network that takes a readout hands it the hidden states of the cells, shape (cells, d_model), and its
    head. The logits of any other network are read out as they are. All other arguments are the network's.
    """
    if takes_readout(model):
        found: T = model(*arguments, **named, readout=readout)
        return found
    return readout(model(*arguments, **named), nn.Identity())


def logits_in_pieces(
    hidden: Float[Tensor, "cells d_model"], head: nn.Module, suppressed_ids: Sequence[int] = ()
) -> Iterator[Float[Tensor, "piece vocab"]]:
    """The logits of some cells after those of the ones before them, without gradients.

    All pieces share one buffer, or are let go one by one: what is needed of a piece is taken before the next
    one is made. A piece may be overwritten.

    Args:
        hidden: Hidden states of the cells, shape (cells, d_model).
        head: The last layer, d_model to the vocabulary; the identity if ``hidden`` are logits.
        suppressed_ids: Tokens whose logits are -inf.

    Yields:
        Logits of consecutive cells, in float32 at least, shape (piece, vocab).
    """
    if not is_linear(head) or compute_dtype(hidden) != head.weight.dtype:
        logits: Tensor = head(hidden)
        # A copy: the identity returns the network's own table.
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        yield suppress_tokens(wide, suppressed_ids)
        return
    size = max(_LOGITS_AT_ONCE // head.out_features, 1)
    by_onednn = is_fused(hidden[:size], head.weight)  # which returns memory of its own
    table = None if by_onednn else aligned_table(hidden, min(size, len(hidden)), head.out_features)
    for states in hidden.split(size):
        if table is None:
            logits = product(states, head)
        else:
            logits = at_least_float32(_product(states, head.weight.T, head.bias, table[: len(states)]))
        for token in suppressed_ids:
            logits.select(1, token).fill_(-math.inf)
        yield logits


def linear_cross_entropy(
    hidden: Float[Tensor, "cells d_model"], head: nn.Module, targets: TokenTargets
) -> TokenScores:
    """Score tokens under softmax(head(hidden)).

    The logits are made as a table and differentiated by autograd where the head is more than a linear layer,
    and in float16, whose gradients need the scaling of the whole loss to be representable.

    Args:
        hidden: Hidden states of the cells, shape (cells, d_model).
        head: The last layer, d_model to the vocabulary; the identity if ``hidden`` are logits.
        targets: What to score.

    Raises:
        ValueError: If a target is not of the vocabulary (on the CPU).
        RuntimeError: If the gradient is differentiated again, or taken a second time.
    """
    if not is_linear(head) or compute_dtype(hidden) == torch.float16:
        return cross_entropy_of_logits(head(hidden), targets)
    check_vocabulary(targets.token, head.out_features)
    return _in_pieces(hidden, head.weight, head.bias, targets)


def cross_entropy_of_logits(logits: Float[Tensor, "cells vocab"], targets: TokenTargets) -> TokenScores:
    """Score tokens under softmax(logits), for networks that return logits.

    Args:
        logits: Unnormalised log-probabilities of the cells, shape (cells, vocab).
        targets: What to score.

    Raises:
        ValueError: If a target is not of the vocabulary (on the CPU).
    """
    check_vocabulary(targets.token, logits.shape[1])
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    _forbid(wide, targets, slice(None))
    cell, groups = _cell_of_target(targets), _Groups.of(targets, wide.device)
    log_shared = groups.log_sum_exp(wide.logsumexp(1), slice(None))
    log_probs = wide[cell, targets.token] - log_shared[cell]
    loss = _weighted_sum(log_probs, targets)
    best = wide.detach().argmax(1) if targets.wants_best else None
    return TokenScores(loss=loss, log_probs=log_probs.detach(), best=best, vocab_size=logits.shape[1])


@uncompiled  # a loop over pieces whose number differs from batch to batch
def _in_pieces(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: TokenTargets) -> TokenScores:
    differentiates = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    made: Any = _LinearCrossEntropy.apply(hidden, weight, bias, targets, differentiates)
    return TokenScores(*made, vocab_size=len(weight))


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss, log-probabilities and best tokens; the gradients of the loss are made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: TokenTargets,
        differentiates: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        dtype = compute_dtype(hidden)
        wide = torch.promote_types(dtype, torch.float32)
        states, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
        cell, groups = _cell_of_target(targets), _Groups.of(targets, hidden.device)
        of_targets = states.new_zeros(len(states), dtype=wide).index_add(0, cell, targets.weight.to(wide))
        mass = groups.sum(of_targets)
        log_probs = states.new_full((len(cell),), -math.inf, dtype=wide)
        best = cell.new_empty(len(states)) if targets.wants_best else None
        gradients = HeadGradients(states, matrix, bias) if differentiates else None
        pieces = list(groups.pieces(len(states), max(_LOGITS_AT_ONCE // len(matrix), 1)))
        buffer = aligned_table(states, max(map(len, pieces), default=0), len(matrix))
        for piece in pieces:
            rows = slice(piece.start, piece.stop)
            logits = torch.mm(states[rows], matrix.T, out=buffer[: len(piece)]).to(wide)
            if bias is not None:
                logits += bias
            _forbid(logits, targets, rows)
            if best is not None:
                best[rows] = logits.argmax(1)
            # Which targets belong to this piece is not read from the device: all are looked up, and those
            # of other pieces are left out.
            here = (cell >= piece.start) & (cell < piece.stop)
            place = (cell - piece.start).clamp(0, len(piece) - 1), targets.token
            score = logits[place]
            highest = logits.amax(1, keepdim=True)
            total = logits.sub_(highest).exp_().sum(1)
            log_total = highest.squeeze(1) + total.log()
            log_shared = groups.log_sum_exp(log_total, rows)
            log_probs = torch.where(here, score - log_shared[place[0]], log_probs)
            if gradients is not None:
                logits *= (mass[rows] * (log_total - log_shared).exp() / total).unsqueeze(1)
                logits.index_put_(place, torch.where(here, -targets.weight, 0.0).to(wide), accumulate=True)
                gradients.add(logits, rows)
        if gradients is not None:
            ctx.gradients = gradients.hidden, gradients.weight, gradients.bias
            ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(log_probs, *(() if best is None else (best,)))
        return _weighted_sum(log_probs, targets), log_probs, best

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "linear_cross_entropy makes its gradients in the forward pass, so they cannot be "
                "differentiated again (create_graph=True): use cross_entropy_of_logits"
            )
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy keeps its gradients for one backward pass (retain_graph=True is not "
                "possible): use cross_entropy_of_logits"
            )
        factor = grad_outputs[0]
        ctx.gradients, (of_hidden, of_weight, of_bias) = None, ctx.gradients
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            (of_hidden * factor).to(hidden_dtype),
            of_weight.mul_(factor).to(weight_dtype),
            None if of_bias is None else of_bias.mul_(factor).to(weight_dtype),
            None,
            None,
        )


class HeadGradients:
    """Sums of the gradients over the pieces, with those of the weights in float32 at least."""

    def __init__(self, states: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
        wide = torch.promote_types(states.dtype, torch.float32)
        self._states = states
        self._matrix = matrix
        self.hidden = torch.empty_like(states)
        self.weight = torch.zeros_like(matrix, dtype=wide)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=wide)

    def add(self, of_logits: Tensor, rows: slice) -> None:
        """Add what follows from dL / dz of some cells, shape (cells, vocab)."""
        if self.bias is not None:
            self.bias += of_logits.sum(0)
        narrow = of_logits.to(self._states.dtype)
        torch.mm(narrow, self._matrix, out=self.hidden[rows])
        if narrow.dtype == self.weight.dtype:
            torch.addmm(self.weight, narrow.T, self._states[rows], out=self.weight)
        else:
            self.weight += narrow.T @ self._states[rows]


@dataclass(frozen=True)
class _Groups:
    """Cells that share a softmax; without sizes, each cell has its own."""

    sizes: Sequence[int] | None
    of_cell: Tensor | None
    """Number of the group of each cell, (cells,)."""

    @staticmethod
    def of(targets: TokenTargets, device: torch.device) -> "_Groups":
        """The groups that the targets name."""
        if (sizes := targets.group_sizes) is None:
            return _Groups(None, None)
        numbers = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.long))
        return _Groups(sizes, numbers.to(device, non_blocking=True))

    def pieces(self, num_cells: int, most: int) -> Iterator[range]:
        """Ranges of at most so many cells; a group stays in one piece, even if it has more."""
        if self.sizes is None:
            yield from (range(low, min(low + most, num_cells)) for low in range(0, num_cells, most))
            return
        low = high = 0
        for size in self.sizes:
            if high > low and high + size - low > most:
                yield range(low, high)
                low = high
            high += size
        if high > low:
            yield range(low, high)

    def sum(self, values: Tensor) -> Tensor:
        """(cells,) sum of the values of each cell's group."""
        if self.of_cell is None or self.sizes is None:
            return values
        return values.new_zeros(len(self.sizes)).index_add(0, self.of_cell, values)[self.of_cell]

    def log_sum_exp(self, values: Tensor, rows: slice) -> Tensor:
        """(cells,) log of the sum of exp(values) over each cell's group; ``rows`` are whole groups."""
        if self.of_cell is None or self.sizes is None:
            return values
        group = self.of_cell[rows]
        highest = values.new_full((len(self.sizes),), -math.inf)
        highest = highest.scatter_reduce(0, group, values.detach(), "amax")[group]
        total = values.new_zeros(len(self.sizes)).index_add(0, group, (values - highest).exp())
        return highest + total[group].log()


def _weighted_sum(log_probs: Tensor, targets: TokenTargets) -> Tensor:
    weight = targets.weight.to(log_probs.dtype)
    return -torch.where(weight != 0, weight * log_probs, 0.0).sum()


def _cell_of_target(targets: TokenTargets) -> Tensor:
    if targets.cell is not None:
        return targets.cell
    return torch.arange(len(targets.token), device=targets.token.device)


def _forbid(logits: Tensor, targets: TokenTargets, rows: slice) -> None:
    """Set the logits of tokens of probability 0 to -inf, in place."""
    ends: list[tuple[int, Tensor]] = []
    if targets.may_end is not None:
        never = ~targets.may_end[rows]
        columns = [never] * len(targets.end_ids) if never.dim() == 1 else never.unbind(1)
        pairs = zip(targets.end_ids, columns, strict=True)
        ends = [(token, logits.select(1, token).masked_fill(at, -math.inf)) for token, at in pairs]
    for token in targets.suppressed_ids:
        logits.select(1, token).fill_(-math.inf)
    for token, column in ends:
        logits.select(1, token).copy_(column)


def aligned_table(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty (rows, columns) table whose rows start at multiples of 64 bytes.

    A product of matrices writes rows that start anywhere at two thirds of the speed.
    """
    step = 64 // like.element_size()
    return like.new_empty(rows, math.ceil(columns / step) * step)[:, :columns]


def _product(states: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(states, matrix, out=out)
    return torch.addmm(bias, states, matrix, out=out)


def is_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a head is a linear layer and nothing more."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of a matrix product of the head, which autocast may decide."""
    kind = hidden.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype
