"""Samplers: which cells of a canvas are written when.

The reverse process from t = 1, where all cells are masked, to t = 0, where none is:

    for t, s in pairwise(times):                              # 1 = t_0 > t_1 > ... > t_N = 0
        unmask = (alpha(s) - alpha(t)) / (1 - alpha(t))
        cells = masked & (rand(masked.shape) < unmask)        # which cells: the network has no say
        logits = network(x, -log(alpha(t)))
        x[cells] = draw(logits[cells])                        # which tokens
        masked = masked & ~cells

:class:`Ancestral` has the distribution of this loop without its waste. Most of the N steps write nothing in a
row, and need no evaluation of it. So the steps of all cells are drawn first and then carried out, row by row
only those that write something: :mod:`xlm_mdlm.plan_mdlm`. :class:`FirstHitting` is the limit of many steps,
:class:`Remasking` also masks cells again. In :class:`ConfidenceOrder` the network chooses the cells, so its
loop stands there as it is. Each leaves no cell masked (left of the end of the text).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xlm.modules import NoiseSchedule, confidence, take_top, uniform, unmask_counts
from xlm.modules.unmasking import Confidence
from xlm_mdlm.canvas_mdlm import STREAM_CELLS, Canvas
from xlm_mdlm.plan_mdlm import Events, Plan
from xlm_mdlm.process_mdlm import (
    RemaskRule,
    noise_of_alpha,
    remask_probability,
    time_grid,
    unmask_probability,
)


class Sampler(Protocol):
    """Writes the masked cells of a canvas."""

    def __call__(self, canvas: Canvas, schedule: NoiseSchedule) -> None:
        """Write them, by the reverse process of a noise schedule."""
        ...


@dataclass(frozen=True)
class Ancestral:
    """Ancestral sampling in N steps (Sahoo et al. 2024, arXiv:2406.07524, section 4).

    From t to s = t - 1/N each masked cell is unmasked with probability (alpha_s - alpha_t) / (1 - alpha_t),
    independently of the others, with a token drawn from the prediction; the last step, to s = 0, unmasks what
    is left in the same way. (The published code draws both at once, stops at s = 1e-5 and takes the most
    probable token there.) Its distribution tends to that of the likelihood bound as N grows, with an error of
    order 1/N.

    The steps of all cells are drawn first: a row takes at most min(N, masked cells) evaluations of the
    network, since a step that unmasks none of its cells needs none.

    Args:
        num_steps: N, at least 1.

    Raises:
        ValueError: If num_steps is below 1.
    """

    num_steps: int = 128

    def __post_init__(self) -> None:
        _check_num_steps(self.num_steps)

    def __call__(self, canvas: Canvas, schedule: NoiseSchedule) -> None:
        """Write the masked cells."""
        times = time_grid(self.num_steps).to(canvas.seeds.device)
        # The step of a cell by inversion: the transitions compose, so that these are the probabilities that a
        # cell is unmasked by the end of steps 1 to N - 1.
        later = times[1:-1]
        unmasked_by = unmask_probability(schedule, torch.ones_like(later), later)
        drawn = uniform(canvas.seeds, canvas.masked.shape[1], step=0, stream=STREAM_CELLS)
        row, column = canvas.masked.nonzero(as_tuple=True)
        step = 1 + torch.searchsorted(unmasked_by, drawn[row, column], right=True)
        noise = noise_of_alpha(schedule.alpha(times))[step - 1]
        Plan(Events(row, column, step), noise).carry_out(canvas)


@dataclass(frozen=True)
class FirstHitting:
    """First-hitting sampling (Zheng et al. 2024, arXiv:2409.02908, section 4).

    The limit N to infinity of :class:`Ancestral`, exactly: cells are unmasked one at a time, each when the
    reverse process in continuous time does it. From n masked cells at mask probability u the next time is
    where it has fallen to u v^(1/n) with v ~ U(0, 1), and a uniformly chosen cell is unmasked: the largest of
    n independent U(0, u) draws, one for each cell. A row takes one evaluation of the network per masked cell.
    """

    def __call__(self, canvas: Canvas, schedule: NoiseSchedule) -> None:
        """Write the masked cells."""
        drawn = uniform(canvas.seeds, canvas.masked.shape[1], step=0, stream=STREAM_CELLS)
        order = drawn.masked_fill(~canvas.masked, -1.0).argsort(dim=1, descending=True, stable=True)
        row, column = canvas.masked.nonzero(as_tuple=True)
        step = 1 + order.argsort(dim=1)[row, column]
        alpha = _alpha_of_share(schedule, drawn[row, column])
        Plan(Events(row, column, step), noise_of_alpha(alpha)).carry_out(canvas)


@dataclass(frozen=True)
class Remasking:
    """Ancestral sampling that also masks written cells again (ReMDM; Wang et al. 2025, arXiv:2503.00307).

    From t to s = t - 1/N a clean cell is masked with probability sigma, so that later steps can correct it,
    and a masked one unmasked with the probability that makes up for it (section 3): each cell is clean with
    probability alpha_s all the same. sigma is min(eta, sigma_max) or eta * sigma_max (section 4). Given cells
    are never masked. A row takes one evaluation of the network for each step that unmasks any of its cells,
    at most N, and more of them the larger sigma is.

    Args:
        num_steps: N, at least 1.
        rule: "cap" or "rescale", see :func:`xlm_mdlm.process_mdlm.remask_probability`.
        eta: In [0, 1]; 0 is :class:`Ancestral`.

    Raises:
        ValueError: If an option is outside its range.
    """

    num_steps: int = 128
    rule: RemaskRule = "cap"
    eta: float = 0.02

    def __post_init__(self) -> None:
        _check_num_steps(self.num_steps)
        if self.rule not in ("cap", "rescale"):
            raise ValueError(f"rule must be 'cap' or 'rescale', got {self.rule!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    def __call__(self, canvas: Canvas, schedule: NoiseSchedule) -> None:
        """Write the masked cells."""
        times = time_grid(self.num_steps).to(canvas.seeds.device)
        sigma = remask_probability(schedule, times[:-1], times[1:], rule=self.rule, eta=self.eta)
        unmask = unmask_probability(schedule, times[:-1], times[1:], remask=sigma)
        # Also under a schedule with alpha_0 < 1 nothing stays masked.
        sigma[-1], unmask[-1] = 0.0, 1.0

        masked, written = canvas.masked.clone(), torch.zeros_like(canvas.masked)
        writes: list[Tensor] = []
        remasks: list[Tensor] = []
        for step in range(1, self.num_steps + 1):
            drawn = uniform(canvas.seeds, masked.shape[1], step=step, stream=STREAM_CELLS)
            now_written = masked & (drawn < unmask[step - 1])
            now_masked = written & (drawn < sigma[step - 1])
            writes.append(_with_step(now_written, step))
            remasks.append(_with_step(now_masked, step))
            masked = (masked & ~now_written) | now_masked
            written = (written & ~now_masked) | now_written
        write = Events(*torch.cat(writes, dim=1))
        noise = noise_of_alpha(schedule.alpha(times))[write.step - 1]
        Plan(write, noise, Events(*torch.cat(remasks, dim=1))).carry_out(canvas)


@dataclass(frozen=True)
class ConfidenceOrder:
    """The most confident cells first (MaskGIT; Chang et al. 2022, arXiv:2202.04200).

    Each step evaluates the network at all masked cells and writes an equal share of them, the best by
    confidence. Much better than random order where some cells decide others (Kim et al. 2025,
    arXiv:2502.06768), but its distribution is not the one of the likelihood bound. A network conditioned on
    time gets the time at which the masked share of the cells is the expected one.

    Args:
        num_steps: N, at least 1; None for one cell per step. A row takes at most min(N, masked cells)
            evaluations of the network.
        kind: "top_prob", the largest probability; "margin", the largest less the second; "entropy", sum of
            p log p. All at temperature 1 and without filters.

    Raises:
        ValueError: If an option is outside its range.
    """

    num_steps: int | None = None
    kind: Confidence = "margin"

    def __post_init__(self) -> None:
        if self.num_steps is not None:
            _check_num_steps(self.num_steps)
        if self.kind not in ("top_prob", "margin", "entropy"):
            raise ValueError(f"kind must be 'top_prob', 'margin' or 'entropy', got {self.kind!r}")

    def __call__(self, canvas: Canvas, schedule: NoiseSchedule) -> None:
        """Write the masked cells."""
        num_start = canvas.masked.sum(1)
        num_steps = max(canvas.masked.shape[1], 1) if self.num_steps is None else self.num_steps
        turn = 0
        while bool((active := canvas.waiting()).any()):
            turn += 1
            masked = canvas.masked & active.unsqueeze(1)
            row, column = masked.nonzero(as_tuple=True)
            share = masked.sum(1) / num_start.clamp(min=1).to(torch.float64)
            noise = noise_of_alpha(_alpha_of_share(schedule, share))
            logits = canvas.evaluate(row, column, noise[row])
            certainty = confidence(logits, self.kind)
            scores = certainty.new_full(masked.shape, -torch.inf)
            scores[row, column] = certainty
            counts = unmask_counts(masked.sum(1), num_steps - turn + 1)
            chosen = take_top(scores, counts, masked)[row, column]
            canvas.write(row[chosen], column[chosen], logits[chosen], turn=turn)


def _alpha_of_share(schedule: NoiseSchedule, share: Tensor) -> Tensor:
    """alpha at the time when a ``share`` in [0, 1] of the cells masked at t = 1 still is, of any shape."""
    return 1 - share * (1 - schedule.alpha(torch.ones_like(share)))


def _with_step(cells: Tensor, step: int) -> Tensor:
    """(3, cells) row, column and step of the marked cells (rows, length)."""
    row, column = cells.nonzero(as_tuple=True)
    return torch.stack([row, column, torch.full_like(row, step)])


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
