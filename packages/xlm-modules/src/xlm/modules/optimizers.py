"""AdamW, and Muon for the hidden matrices with AdamW for the rest, both fast on a CPU."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Where torch has one kernel for the whole step of AdamW. Elsewhere torch chooses."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration of Jordan et al. 2024: singular values end near 1, most between 0.7 and 1.2."""
STEPS = 5
SMALLEST_NORM = 1e-7
MOST_ELEMENTS = 2**24
"""Of the matrices that are made orthogonal at once, so that the copies stay small (64 MiB in float32)."""


class FusedAdamW(AdamW):
    """torch's AdamW with one kernel for a whole step, where the device has it.

    Gradients are unscaled before the step (``16-mixed``), as without fusing: the harness divides and clips
    them first.

    Args:
        parameters: Names and parameters, as of ``model.named_parameters()``.
        lr: Learning rate.
        betas: Decay of the averages of gradient and squared gradient.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        named = list(parameters)
        fused = all(parameter.device.type in FUSED_DEVICES for _, parameter in named) or None
        super().__init__(named, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self._step_supports_amp_scaling = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of torch's AdamW; whether the step is fused stays as it is here."""
        super().load_state_dict(_with_fusing_of(self, state_dict))


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the network, AdamW for everything else.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the momentum of a weight matrix
    orthogonal before it is taken off. Embeddings, output heads, biases and norms are left to AdamW, as its
    authors advise. The update of a matrix is scaled to the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982, section 2.2), so one learning rate and one weight decay serve both.

    The steps are those of ``torch.optim.Muon``, except that the orthogonalisation is in float32 on devices
    without bfloat16 matrix products (:func:`newton_schulz_dtype`) and takes matrices of one shape together.

    The modulation of a diffusion transformer is Muon's as well: with AdamW its output would move by lr times
    the sum of all entries of the condition.

    Args:
        parameters: Names and parameters, as of ``model.named_parameters()``.
        lr: Learning rate of both.
        matrices: Regular expression; two-dimensional parameters with a name in which it is found are Muon's.
        momentum: Of Muon.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Share of a weight, times lr, taken off at each step.

    Raises:
        ValueError: If no two-dimensional parameter fits ``matrices``, or all parameters do.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        matrices: str = "blocks|modulation",
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        named = list(parameters)
        inside = [item for item in named if item[1].dim() == 2 and re.search(matrices, item[0])]
        names = {name for name, _ in inside}
        outside = [item for item in named if item[0] not in names]
        if not inside or not outside:
            raise ValueError(
                f"matrices={matrices!r} fits {'no' if not inside else 'every'} parameter: it chooses the "
                f"two-dimensional ones for Muon by name, and the names are {_shorten(named)}"
            )
        self._adamw = FusedAdamW(outside, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        muon = {"params": inside, "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([muon, *self._adamw.param_groups], {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of torch's Muon and AdamW; whether AdamW is fused stays as it is here."""
        super().load_state_dict(_with_fusing_of(self, state_dict))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step with both; ``closure`` recomputes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon, adamw = self.param_groups
        self._step_with_muon(muon)
        # Groups and state are replaced when a checkpoint is loaded, hence shared again each time.
        self._adamw.param_groups = [adamw]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    @torch.no_grad()
    def _step_with_muon(self, group: dict[str, Any]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        updates: list[Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(average, momentum))
        for parameter, direction in zip(parameters, orthogonalise(updates), strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(direction, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)


def _with_fusing_of(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state whose groups are fused as those of ``optimizer``, which the kernel's step counts depend on."""
    groups = [
        {**saved, "fused": own["fused"]} if "fused" in own else saved
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    return {**state, "param_groups": [*groups, *state["param_groups"][len(groups) :]]}


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """Replace the singular values of each matrix by values near 1 (its polar factor, approximately).

    Five Newton-Schulz steps, as those of ``torch.optim.Muon``. Matrices of one shape, lying or standing, are
    multiplied together.

    Args:
        matrices: Each of shape (rows, columns).

    Returns:
        Tensors of the same shapes, in :func:`newton_schulz_dtype`. A matrix of zeros stays one.
    """
    results: list[Tensor] = list(matrices)
    for places in _same_shapes(matrices):
        wide = torch.stack([_lying(matrices[place]) for place in places])
        done = newton_schulz(wide.to(newton_schulz_dtype(wide.device)))
        for place, result in zip(places, done.unbind(), strict=True):
            results[place] = result.mT if matrices[place].size(0) > matrices[place].size(1) else result
    return results


def newton_schulz(matrices: Tensor) -> Tensor:
    """Five steps of the quintic iteration X <- aX + (bA + cA²)X with A = XXᵀ (Jordan et al. 2024).

    Args:
        matrices: Shape (number, rows, columns) with no more rows than columns.

    Returns:
        The same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    # The norm of all entries is at least the greatest singular value.
    x = matrices / torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA devices that multiply it in hardware (compute capability 8 and above), else float32.

    A CPU without such instructions emulates it some fifty times slower than float32, and one that has them
    gains nothing on small matrices.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


def _lying(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.size(0) > matrix.size(1) else matrix


def _same_shapes(matrices: list[Tensor]) -> Iterator[list[int]]:
    """Places of the matrices that fit one batch: same sides, dtype and device, and not too many elements."""
    batches: dict[object, list[int]] = {}
    for place, matrix in enumerate(matrices):
        key = (*sorted(matrix.shape), matrix.dtype, matrix.device)
        batches.setdefault(key, []).append(place)
    for places in batches.values():
        size = max(1, MOST_ELEMENTS // max(1, matrices[places[0]].numel()))
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _shorten(named: list[tuple[str, nn.Parameter]]) -> str:
    names = [name for name, _ in named]
    return ", ".join(names if len(names) <= 8 else [*names[:8], "..."])
