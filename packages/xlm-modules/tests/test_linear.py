"""Linear layers by oneDNN: equal to torch's own, and used only where they may be."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xlm.modules import FeedForward
from xlm.modules.linear import Linear, linear_then

HIDDEN = torch.randn(4, 50, 24, generator=torch.Generator().manual_seed(0))


class Fused(TorchDispatchMode):
    """Counts the calls of oneDNN's layer."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.mkldnn._linear_pointwise.default
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _needs_onednn() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")


def without_gradients(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, int]:
    with torch.no_grad(), Fused() as fused:
        return layer(hidden), fused.count


@pytest.mark.parametrize(("activation", "fused"), [("gelu", 2), ("gelu_erf", 2), ("relu", 2)])
def test_an_mlp_without_gradients_is_that_with_them(activation: Any, fused: int) -> None:
    layer = FeedForward(d_model=24, d_ff=40, activation=activation)
    found, count = without_gradients(layer, HIDDEN)
    torch.testing.assert_close(found, layer(HIDDEN).detach(), rtol=1e-5, atol=1e-6)
    assert count == fused


def test_a_layer_without_bias_is_torchs_own() -> None:
    layer = Linear(24, 72, bias=False)
    found, count = without_gradients(layer, HIDDEN)
    torch.testing.assert_close(found, HIDDEN @ layer.weight.detach().T, rtol=1e-5, atol=1e-6)
    assert count == 1


def test_where_torchs_own_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = FeedForward(d_model=24, d_ff=40)
    assert without_gradients(layer, HIDDEN[:1])[1] == 0, "few tokens"
    assert without_gradients(FeedForward(d_model=24, d_ff=40).double(), HIDDEN.double())[1] == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert without_gradients(layer, HIDDEN)[1] == 0
    with Fused() as fused:
        assert layer(HIDDEN).requires_grad
        assert fused.count == 0
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert without_gradients(layer, HIDDEN)[1] == 0


def test_hooks_and_replaced_layers_are_called() -> None:
    layer, seen = FeedForward(d_model=24, d_ff=40), list[int]()

    def hook(*_: object) -> None:
        seen.append(1)

    handle = layer.activation.register_forward_hook(hook)
    without_gradients(layer, HIDDEN)
    assert seen == [1]
    handle.remove()
    doubled = nn.Sequential(layer.input, nn.Linear(40, 40))
    with torch.no_grad():
        expected = nn.functional.gelu(doubled(HIDDEN), approximate="tanh")
        torch.testing.assert_close(linear_then(doubled, layer.activation, HIDDEN), expected)
