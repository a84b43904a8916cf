"""The optimizer that needs two of torch's at once."""

import re
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import nn
from torch.optim import AdamW, Muon


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the matrices inside the network, torch's AdamW for everything else.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the momentum of a weight matrix
    orthogonal before it is taken off. Embeddings, output heads, biases and norms are left to AdamW, as its
    authors advise. The update of a matrix is scaled to the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982, section 2.2), so one learning rate and one weight decay serve both.

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
        self._muon = Muon(
            inside,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = AdamW(outside, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step with both; ``closure`` computes the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups and state are replaced when a checkpoint is loaded, hence shared anew each time.
        for part, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state
            part.step()
        return loss


def _shorten(named: list[tuple[str, nn.Parameter]]) -> str:
    names = [name for name, _ in named]
    return ", ".join(names if len(names) <= 8 else [*names[:8], "..."])
