"""Linear layers without gradients on a CPU: product, bias and GELU in one call of oneDNN.

torch multiplies float32 matrices by MKL, which on AMD processors with AVX-512 reaches half of the rate of
oneDNN's kernels, and then passes over the result for GELU, whose tanh takes half as long as the product.
torch.compile makes the same call of a layer on a CPU. ``torch.backends.mkldnn.enabled = False`` turns it off.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEAST_TOKENS = 128
"""Tokens from which the call pays: it arranges the weights for its kernel each time."""
_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """torch's linear layer; in float32 on a CPU, many tokens without gradients go through oneDNN."""

    def forward(self, input: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        """Affine map of the last axis."""
        return product(input, self) if is_fused(input, self.weight) else super().forward(input)


def linear_then(
    linear: nn.Module, activation: nn.Module, hidden: Float[Tensor, "*shape d_in"]
) -> Float[Tensor, "*shape d_out"]:
    """``activation(linear(hidden))``, a GELU in the same call where :class:`Linear` goes through oneDNN.

    Args:
        linear: A layer; one that was replaced or has hooks is called as it is.
        activation: What follows it, likewise.
        hidden: Its input.
    """
    if (
        type(linear) is Linear
        and type(activation) is nn.GELU
        and not any(map(_has_hooks, (linear, activation)))
        and is_fused(hidden, linear.weight)
    ):
        return product(hidden, linear, "gelu", activation.approximate)
    found: Tensor = activation(linear(hidden))
    return found


def _has_hooks(part: nn.Module) -> bool:
    return bool(vars(part)["_forward_hooks"] or vars(part)["_forward_pre_hooks"])


def is_fused(hidden: Float[Tensor, "*shape d_in"], weight: Float[Tensor, "d_out d_in"]) -> bool:
    """Whether :func:`product` may be taken, and pays."""
    return (
        _AVAILABLE
        and not torch.is_grad_enabled()
        and hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and type(weight) is nn.Parameter
        and hidden.numel() >= _LEAST_TOKENS * hidden.shape[-1]
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(
    hidden: Float[Tensor, "*shape d_in"], linear: nn.Linear, operation: str = "none", algorithm: str = ""
) -> Float[Tensor, "*shape d_out"]:
    """``linear(hidden)`` by oneDNN, with an operation after it."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(
        hidden, linear.weight, linear.bias, operation, [], algorithm
    )
    return found
