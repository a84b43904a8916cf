"""A loss of all logits of each cell, in pieces, against autograd on the whole table."""

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import cell_loss, linear_cell_loss

CELLS, WIDTH, VOCAB = 11, 5, 7


class WeightedLogSumExp:
    """w * log of the sum of exp, whose gradient is w times the softmax."""

    def __init__(self) -> None:
        self.weight = torch.linspace(0.5, 2.0, CELLS, dtype=torch.float64)
        self.sizes: list[int] = []

    def __call__(self, logits: Tensor, cells: slice, /, *, differentiates: bool) -> Tensor:
        self.sizes.append(len(logits))
        weight = self.weight[cells]
        value = logits.logsumexp(1).double() * weight
        if differentiates:
            logits.copy_(logits.softmax(1) * weight.unsqueeze(1))
        else:
            logits.zero_()  # it may be overwritten
        return value


def head(*, bias: bool = True) -> nn.Linear:
    return nn.Linear(WIDTH, VOCAB, bias=bias, dtype=torch.float64)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cells at once, and three at the end."""
    torch.manual_seed(0)
    monkeypatch.setattr(cell_loss, "_LOGITS_AT_ONCE", 4 * VOCAB + 3)


@pytest.mark.parametrize("layer", [head(), head(bias=False), nn.Sequential(head(), nn.Tanh()), nn.Identity()])
def test_loss_and_gradients_are_those_of_the_table(layer: nn.Module) -> None:
    width = VOCAB if isinstance(layer, nn.Identity) else WIDTH
    hidden = torch.randn(CELLS, width, dtype=torch.float64, requires_grad=True)
    loss = WeightedLogSumExp()
    found = linear_cell_loss(hidden, layer, loss)
    assert loss.sizes == [4, 4, 3]
    expected = layer(hidden).logsumexp(1) * loss.weight
    torch.testing.assert_close(found.of_cells, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.loss, expected.sum(), rtol=1e-12, atol=0)
    assert not found.of_cells.requires_grad
    inputs = [hidden, *layer.parameters()]
    gradients = torch.autograd.grad(3 * found.loss, inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected.sum(), inputs), rtol=1e-12, atol=0)


def test_half_precision_is_for_products_only() -> None:
    layer, hidden = head().to(torch.bfloat16), torch.randn(CELLS, WIDTH, dtype=torch.bfloat16)
    found = linear_cell_loss(hidden.requires_grad_(), layer, WeightedLogSumExp())
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    expected = (layer(hidden).float().logsumexp(1) * WeightedLogSumExp().weight).sum()
    torch.testing.assert_close(found.loss.double(), expected.detach(), rtol=1e-2, atol=0)


def test_nothing_is_differentiated_where_no_gradient_is_needed() -> None:
    with torch.no_grad():
        found = linear_cell_loss(torch.randn(CELLS, WIDTH, dtype=torch.float64), head(), WeightedLogSumExp())
    assert not found.loss.requires_grad
    empty = linear_cell_loss(torch.zeros(0, WIDTH, dtype=torch.float64), head(), WeightedLogSumExp())
    assert (empty.loss.item(), len(empty.of_cells)) == (0.0, 0)


def test_gradients_are_taken_once_and_not_differentiated_again() -> None:
    hidden = torch.randn(CELLS, WIDTH, dtype=torch.float64, requires_grad=True)
    loss = linear_cell_loss(hidden, head(), WeightedLogSumExp()).loss
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(loss, hidden, create_graph=True)
    torch.autograd.grad(loss, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(loss, hidden)
