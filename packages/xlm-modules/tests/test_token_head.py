"""The head's cross entropy in pieces against torch's cross_entropy and against sums written out by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xlm.modules import (
    TokenTargets,
    cross_entropy_of_logits,
    linear_cross_entropy,
    logits_in_pieces,
    token_head,
)
from xlm.modules.linear import is_fused

CELLS, WIDTH, VOCAB = 13, 5, 11
BOTH = pytest.mark.parametrize("form", ["in pieces", "of logits"])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of four cells."""
    monkeypatch.setattr(token_head, "_LOGITS_AT_ONCE", 4 * VOCAB + 3)


def made(dtype: torch.dtype = torch.float64, *, bias: bool = True) -> tuple[Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(CELLS, WIDTH, generator=generator, dtype=torch.float64)
    head = nn.Linear(WIDTH, VOCAB, dtype=torch.float64, bias=bias)
    for parameter in head.parameters():
        nn.init.normal_(parameter, generator=generator)
    return hidden.to(dtype).requires_grad_(), head.to(dtype)


def tokens(number: int, **options: Any) -> TokenTargets:
    generator = torch.Generator().manual_seed(1)
    return TokenTargets(
        token=torch.randint(3, VOCAB, (number,), generator=generator),
        weight=torch.rand(number, generator=generator, dtype=torch.float64),
        **options,
    )


def score(form: str, hidden: Tensor, head: nn.Linear, targets: TokenTargets) -> Any:
    if form == "in pieces":
        return linear_cross_entropy(hidden, head, targets)
    return cross_entropy_of_logits(head(hidden), targets)


def assert_same(scores: Any, expected: Tensor, hidden: Tensor, head: nn.Linear) -> None:
    """The loss and its gradients; the factor stands for what comes after the loss."""
    torch.testing.assert_close(scores.loss, expected)
    leaves = [hidden, *head.parameters()]
    found = torch.autograd.grad(3 * scores.loss, leaves)
    for mine, other in zip(found, torch.autograd.grad(3 * expected, leaves), strict=True):
        torch.testing.assert_close(mine, other)


@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_one_token_in_each_cell_is_cross_entropy(form: str, bias: bool) -> None:
    hidden, head = made(bias=bias)
    targets = tokens(CELLS, wants_best=True)
    scores = score(form, hidden, head, targets)
    entropy = F.cross_entropy(head(hidden), targets.token, reduction="none")
    torch.testing.assert_close(scores.log_probs, -entropy.detach())
    assert scores.best.tolist() == head(hidden).argmax(1).tolist()
    assert_same(scores, (targets.weight * entropy).sum(), hidden, head)


@BOTH
def test_impossible_tokens_have_no_share(form: str) -> None:
    hidden, head = made()
    may_end = torch.arange(CELLS) % 3 == 0
    targets = tokens(CELLS, suppressed_ids=[0, 1, 2], end_ids=[1, 2], may_end=may_end, wants_best=True)
    scores = score(form, hidden, head, targets)
    terms = []
    for cell in range(CELLS):
        possible = [1, 2, *range(3, VOCAB)] if may_end[cell] else list(range(3, VOCAB))
        logits = head(hidden[cell])
        terms.append(torch.logsumexp(logits[possible], 0) - logits[targets.token[cell]])
        assert scores.best[cell] == possible[int(logits[possible].argmax())]
    assert_same(scores, (targets.weight * torch.stack(terms)).sum(), hidden, head)


@BOTH
def test_each_end_token_may_have_cells_of_its_own(form: str) -> None:
    hidden, head = made()
    cell = torch.arange(CELLS)
    may_end = torch.stack([cell % 3 == 0, cell % 2 == 0], dim=1)
    targets = tokens(CELLS, suppressed_ids=[0, 1, 2], end_ids=[2, 0], may_end=may_end)
    terms = []
    for row in range(CELLS):
        possible = [2] * bool(may_end[row, 0]) + [0] * bool(may_end[row, 1]) + list(range(3, VOCAB))
        logits = head(hidden[row])
        terms.append(torch.logsumexp(logits[possible], 0) - logits[targets.token[row]])
    expected = (targets.weight * torch.stack(terms)).sum()
    assert_same(score(form, hidden, head, targets), expected, hidden, head)


@BOTH
def test_several_tokens_in_a_cell_and_none_in_others(form: str) -> None:
    hidden, head = made()
    cell = torch.tensor([12, 0, 0, 3, 3, 3, 7, 5, 0])
    targets = tokens(len(cell), cell=cell)
    scores = score(form, hidden, head, targets)
    log_probs = head(hidden).log_softmax(1)
    expected = torch.stack([-log_probs[c, t] for c, t in zip(cell, targets.token, strict=True)])
    torch.testing.assert_close(scores.log_probs, -expected.detach())
    assert_same(scores, (targets.weight * expected).sum(), hidden, head)


@BOTH
def test_cells_of_a_group_share_a_softmax(form: str) -> None:
    hidden, head = made()
    sizes = [2, 0, 6, 1, 4]  # the third is larger than a piece
    cell = torch.tensor([0, 1, 1, 2, 7, 7, 4, 8, 12])
    targets = tokens(len(cell), cell=cell, group_sizes=sizes, suppressed_ids=[0, 1])
    scores = score(form, hidden, head, targets)
    logits = head(hidden)[:, 2:]
    terms = []
    for place, token in zip(cell.tolist(), targets.token.tolist(), strict=True):
        low = 0
        for size in sizes:
            if low <= place < low + size:
                terms.append(logits[low : low + size].logsumexp((0, 1)) - logits[place, token - 2])
            low += size
    torch.testing.assert_close(scores.log_probs, -torch.stack(terms).detach())
    assert_same(scores, (targets.weight * torch.stack(terms)).sum(), hidden, head)


@BOTH
def test_an_impossible_target_makes_the_loss_infinite(form: str) -> None:
    hidden, head = made()
    targets = tokens(CELLS, suppressed_ids=[int(tokens(CELLS).token[4])])
    scores = score(form, hidden, head, targets)
    assert scores.loss == math.inf
    assert scores.log_probs[4] == -math.inf


@BOTH
def test_no_cells_and_no_targets(form: str) -> None:
    hidden, head = made()
    scores = score(form, hidden[:0], head, tokens(0, wants_best=True))
    assert scores.loss == 0
    assert scores.best.shape == (0,)
    nothing = score(form, hidden, head, tokens(0, cell=torch.tensor([], dtype=torch.long)))
    assert_same(nothing, (0 * head(hidden)).sum(), hidden, head)


def test_the_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = made()
    targets = tokens(CELLS, suppressed_ids=[0])
    in_pieces = linear_cross_entropy(hidden, head, targets)
    gradient = torch.autograd.grad(in_pieces.loss, head.weight)
    monkeypatch.setattr(token_head, "_LOGITS_AT_ONCE", 10**6)
    at_once = linear_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(at_once.loss, in_pieces.loss)
    torch.testing.assert_close(torch.autograd.grad(at_once.loss, head.weight), gradient)


def test_only_the_buffer_and_the_gradients_are_allocated() -> None:
    vocab = 4096
    hidden, head = torch.randn(256, 8, requires_grad=True), nn.Linear(8, vocab)
    targets = TokenTargets(token=torch.zeros(256, dtype=torch.long), weight=torch.ones(256))
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.numel())
            return made

    with Largest():
        linear_cross_entropy(hidden, head, targets).loss.backward()
    assert largest == vocab * 8  # the gradient of the weights; the logits would be 256 * vocab


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_logits_come_in_pieces(dtype: torch.dtype, bias: bool) -> None:
    hidden, head = made(dtype, bias=bias)
    pieces = [logits.clone() for logits in logits_in_pieces(hidden, head, [0, 4])]
    assert [len(logits) for logits in pieces] == [4, 4, 4, 1]
    expected = head(hidden).to(pieces[0].dtype)
    expected[:, [0, 4]] = -math.inf
    assert pieces[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(torch.cat(pieces), expected)


@torch.no_grad()
def test_logits_of_many_cells_in_float32_are_those_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By oneDNN, where torch has it."""
    hidden, head = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), nn.Linear(16, 40)
    monkeypatch.setattr(token_head, "_LOGITS_AT_ONCE", 140 * 40)
    assert is_fused(hidden[:140], head.weight) == torch.backends.mkldnn.is_available()
    pieces = list(logits_in_pieces(hidden, head, [3]))
    assert [len(logits) for logits in pieces] == [140, 140, 20]
    expected = head(hidden)
    expected[:, 3] = -math.inf
    torch.testing.assert_close(torch.cat(pieces), expected)


@pytest.mark.parametrize("suppressed", [[3], []])
@torch.no_grad()
def test_logits_that_a_network_gave_are_left_as_they_are(suppressed: list[int]) -> None:
    hidden, head = made()
    table = head(hidden)
    before = table.clone()
    [logits] = logits_in_pieces(table, nn.Identity(), suppressed)
    assert bool((logits[:, suppressed] == -math.inf).all())
    logits.zero_()  # as a piece may be overwritten
    assert torch.equal(table, before)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    hidden, head = made()
    if frozen == "hidden":
        hidden = hidden.detach()
    else:
        head.requires_grad_(False)
    linear_cross_entropy(hidden, head, tokens(CELLS)).loss.backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (head.weight.grad is None) == (frozen == "head")


def test_no_gradients_are_made_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_head, "HeadGradients", None)  # calling it would be an error
    hidden, head = made()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, head, tokens(CELLS)).loss > 0


def test_a_second_derivative_is_refused_by_name() -> None:
    hidden, head = made()
    scores = linear_cross_entropy(hidden, head, tokens(CELLS))
    with pytest.raises(RuntimeError, match="use cross_entropy_of_logits"):
        torch.autograd.grad(scores.loss, hidden, create_graph=True)


def test_a_second_backward_pass_is_refused_by_name() -> None:
    hidden, head = made()
    scores = linear_cross_entropy(hidden, head, tokens(CELLS))
    torch.autograd.grad(scores.loss, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        torch.autograd.grad(scores.loss, hidden)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_sums_in_float32(autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, head = made(dtype)
    targets = tokens(CELLS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = linear_cross_entropy(hidden, head, targets)
    assert scores.log_probs.dtype == torch.float32
    wide_hidden, wide_head = made()
    expected = cross_entropy_of_logits(wide_head(wide_hidden), targets)
    torch.testing.assert_close(scores.loss.double(), expected.loss, rtol=0.02, atol=0.02)
    [found] = torch.autograd.grad(scores.loss, head.weight)
    [exact] = torch.autograd.grad(expected.loss, wide_head.weight)
    assert found.dtype == dtype
    assert (found.double() - exact).norm() < 0.02 * exact.norm()


def test_float16_goes_through_autograd_which_the_scaled_loss_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_head, "_LinearCrossEntropy", None)  # calling it would be an error
    hidden, head = made(torch.float32)
    targets = tokens(CELLS)
    with torch.autocast("cpu", torch.float16):
        scores = linear_cross_entropy(hidden, head, targets)
    # A factor that takes the gradient itself below the smallest number of float16.
    [found] = torch.autograd.grad(scores.loss * 1e-9 * 2.0**30, head.weight)
    wide_hidden, wide_head = made()
    expected = cross_entropy_of_logits(wide_head(wide_hidden), targets)
    [exact] = torch.autograd.grad(expected.loss * 1e-9 * 2.0**30, wide_head.weight)
    assert (found.double() - exact).norm() < 0.01 * exact.norm()


def test_no_number_is_read_from_the_device() -> None:
    hidden, head = (
        torch.empty(CELLS, WIDTH, device="meta", requires_grad=True),
        nn.Linear(WIDTH, VOCAB).to("meta"),
    )
    cell = torch.empty(CELLS, dtype=torch.long, device="meta")
    kinds: list[dict[str, Any]] = [{}, {"cell": cell, "group_sizes": [6, 7]}]
    for options in kinds:
        targets = TokenTargets(
            token=torch.empty(CELLS, dtype=torch.long, device="meta"),
            weight=torch.empty(CELLS, device="meta"),
            suppressed_ids=[0],
            **options,
        )
        linear_cross_entropy(hidden, head, targets).loss.backward()
