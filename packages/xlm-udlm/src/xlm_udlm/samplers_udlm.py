"""Samplers: which noise levels a row passes, and how a cell moves from one to the next.

A step goes from time t to s < t. Each free cell is drawn anew, by itself, from a :class:`Mixture` of its own
token, the network's prediction and the uniform distribution; whether it changes depends on the network, so
every step evaluates every row. The first state is uniform noise (alpha = 0), the last step ends at alpha = 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from xlm.modules import NoiseSchedule, require
from xlm_udlm.posterior_udlm import Mixture, plug_in, renoised_denoiser, renoised_prediction

Rule = Literal["ancestral", "psi_constant", "psi_remdm", "psi_cap", "psi_rescale"]
RULES: tuple[Rule, ...] = ("ancestral", "psi_constant", "psi_remdm", "psi_cap", "psi_rescale")
Final = Literal["draw", "greedy"]


@dataclass(frozen=True)
class Step:
    """One evaluation of the network and what is drawn from it."""

    known_alpha: float
    """alpha that the network is conditioned on: that of t, but not below the schedule's alpha(1)."""
    alpha_t: float
    """Probability that a cell is not noised before the step."""
    alpha_s: float
    """The same after it."""
    kappa: float = 1.0
    """Weight of the posterior; 1 - kappa is that of the denoiser noised again. 1 is the ancestral step."""
    greedy: bool = False
    """Whether the most probable token of the denoiser is taken and nothing drawn."""
    gibbs: bool = False
    """Whether one cell of each row, chosen uniformly, is drawn given all others, instead of every cell."""

    def mixture(self, p_own: Float64[Tensor, " cells"], num_possible: Int[Tensor, " cells"]) -> Mixture:
        """Distribution of the next token of cells, unless ``greedy``.

        Args:
            p_own: The network's prediction at the own token of each cell.
            num_possible: K of each cell.
        """
        if self.gibbs:
            return renoised_prediction(p_own, alpha=self.alpha_s)
        between = plug_in(p_own, num_possible, alpha_t=self.alpha_t, alpha_s=self.alpha_s)
        if self.kappa == 1:
            return between
        again = renoised_denoiser(p_own, num_possible, alpha_t=self.alpha_t, alpha_s=self.alpha_s)
        return between.mixed(again, 1 - self.kappa)


@dataclass(frozen=True)
class UDLMSampler:
    """The steps of the reverse process.

    ``ancestral`` is the posterior of the process with the prediction in the place of the clean token (Schiff
    et al. 2024, arXiv:2412.10193). Its distribution differs from that of the bound by O(1 / num_steps).

    The ``psi`` rules (Deschenaux et al. 2026, arXiv:2602.21185) draw each cell with probability 1 - kappa
    from the denoiser instead and noise it again, which corrects earlier errors. They leave the distribution
    of a single cell as it is, but not that of several: their error goes to 0 only with 1 - kappa = O(1 /
    num_steps). kappa is

        psi_constant   1 - eta
        psi_remdm      1 - eta / (1 - alpha_s), at least 0
        psi_cap        the same with min(eta, (1 - alpha_s) / alpha_t) in the place of eta
        psi_rescale    the same with eta * min(1, (1 - alpha_s) / alpha_t)

    Args:
        rule: One of the above.
        num_steps: N, the number of steps; the evaluations of a row are N and those of ``gibbs_moves``.
        eta: Strength of the correction, in (0, 1]; None with "ancestral".
        hold_alpha: alpha at which the time stands still during a part of the steps, which alone are corrected
            then; None for steps of equal length, all corrected. Published: 0.9 with psi_remdm, eta=0.01.
        approach_share: Share of the steps before that part, in (0, 1).
        hold_share: Share of the steps in it, in (0, 1).
        final: "draw" draws the last step; "greedy" takes the most probable token of the denoiser.
        gibbs_moves: After each step but the last, so many times one cell of each row is drawn given all
            others, which leaves the exact distribution at that noise level as it is.

    Raises:
        ValueError: If an option is outside its range, or unused by the rule.
    """

    rule: Rule = "ancestral"
    num_steps: int = 128
    eta: float | None = None
    hold_alpha: float | None = None
    approach_share: float = 0.45
    hold_share: float = 0.5
    final: Final = "draw"
    gibbs_moves: int = 0

    def __post_init__(self) -> None:
        require(self.rule in RULES, "rule", self.rule, f"one of {', '.join(RULES)}")
        require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        require(self.final in ("draw", "greedy"), "final", self.final, "'draw' or 'greedy'")
        require(self.gibbs_moves >= 0, "gibbs_moves", self.gibbs_moves, "at least 0")
        if self.rule == "ancestral":
            require(self.eta is None, "eta", self.eta, "None with rule='ancestral'")
            require(self.hold_alpha is None, "hold_alpha", self.hold_alpha, "None with rule='ancestral'")
            return
        eta, hold, shares = self.eta, self.hold_alpha, (self.approach_share, self.hold_share)
        require(eta is not None and 0 < eta <= 1, "eta", eta, f"in (0, 1] with rule={self.rule!r}")
        require(hold is None or 0 < hold < 1, "hold_alpha", hold, "None or in (0, 1)")
        in_range = all(share > 0 for share in shares) and sum(shares) < 1
        require(in_range, "approach_share and hold_share", shares, "above 0 and together below 1")
        if hold is not None:
            require(self.num_steps >= 3, "num_steps", self.num_steps, "at least 3 with hold_alpha")

    def steps(self, schedule: NoiseSchedule) -> list[Step]:
        """All evaluations in order.

        Args:
            schedule: alpha; where it does not reach 0 or 1, the first state and the last step do.
        """
        times = self._times(schedule)
        alphas: list[float] = schedule.alpha(torch.tensor(times, dtype=torch.float64)).tolist()
        reached = [0.0, *alphas[1:-1], 1.0]
        found: list[Step] = []
        for number in range(self.num_steps):
            alpha_t, alpha_s = reached[number : number + 2]
            is_last = number == self.num_steps - 1
            is_corrected = self.hold_alpha is None or times[number] == times[number + 1]
            found.append(
                Step(
                    known_alpha=alphas[number],
                    alpha_t=alpha_t,
                    alpha_s=alpha_s,
                    kappa=self.kappa(alpha_t, alpha_s) if is_corrected and not is_last else 1.0,
                    greedy=is_last and self.final == "greedy",
                )
            )
            if not is_last:
                move = Step(known_alpha=alphas[number + 1], alpha_t=alpha_s, alpha_s=alpha_s, gibbs=True)
                found += [move] * self.gibbs_moves
        return found

    def _times(self, schedule: NoiseSchedule) -> list[float]:
        """The N + 1 times from 1 to 0."""
        if self.hold_alpha is None:
            return [1 - number / self.num_steps for number in range(self.num_steps + 1)]
        hold = float(schedule.inverse(torch.tensor(self.hold_alpha, dtype=torch.float64)))
        before = min(max(round(self.approach_share * self.num_steps), 1), self.num_steps - 2)
        held = min(max(round(self.hold_share * self.num_steps), 1), self.num_steps - before - 1)
        after = self.num_steps - before - held
        return [
            *(1 - (1 - hold) * number / before for number in range(before)),
            *[hold] * held,
            *(hold * (1 - number / after) for number in range(after + 1)),
        ]

    def kappa(self, alpha_t: float, alpha_s: float) -> float:
        """Weight of the posterior in a corrected step that does not end at alpha = 1."""
        if self.rule == "ancestral" or self.eta is None:
            return 1.0
        if self.rule == "psi_constant":
            return 1 - self.eta
        limit = 1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t)
        sigma = {
            "psi_remdm": self.eta,
            "psi_cap": min(self.eta, limit),
            "psi_rescale": self.eta * limit,
        }[self.rule]
        return max(1 - sigma / (1 - alpha_s), 0.0)
