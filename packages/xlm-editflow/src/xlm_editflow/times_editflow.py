"""When the next edit is made: the integral of the rates of a row, over the time that is left.

No edit is made while time falls from u to u' with the probability exp(-integral from u' to u of R(w) dw / w),
R(w) being the sum of all rates at w. R is read at points that are equally far apart in log w, and linear
between them; below the last of them nothing happens. The rates vanish like w, so that little is lost there.

Axes: ``rows``, ``points`` of a grid.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Hazard:
    """The rates of some rows over the time that is left."""

    log_start: Float64[Tensor, " rows"]
    """log of the present time."""
    width: Float64[Tensor, " rows"]
    """Distance of two points, in log w."""
    rates: Float64[Tensor, "rows points"]
    """R at the points, from the present time on."""

    def _before(self) -> Tensor:
        """(rows, points) the integral up to each point."""
        areas = (self.rates[:, 1:] + self.rates[:, :-1]) / 2 * self.width.unsqueeze(1)
        return torch.nn.functional.pad(areas.cumsum(1), (1, 0))

    def draw(self, uniforms: Float64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        """log of the time of the next edit by inversion; -inf if there is none."""
        goal = -uniforms.log().unsqueeze(1)
        before = self._before()
        index = ((before <= goal).sum(1, keepdim=True) - 1).clamp(max=before.shape[1] - 2)
        first, second, area = (
            table.gather(1, place)
            for table, place in ((self.rates, index), (self.rates, index + 1), (before, index))
        )
        rest, slope = goal - area, (second - first) / self.width.unsqueeze(1)
        root = (first.square() + 2 * slope * rest).clamp(min=0).sqrt()
        elapsed = index * self.width.unsqueeze(1) + 2 * rest / (first + root)
        log_next = self.log_start - elapsed.squeeze(1)
        return log_next.masked_fill((before[:, -1:] < goal).squeeze(1), -torch.inf)

    def until(
        self, log_time: Float64[Tensor, " rows"]
    ) -> tuple[Float64[Tensor, " rows"], Float64[Tensor, " rows"]]:
        """The integral down to a time, and R there; that of everything, and 0, below the last point."""
        elapsed = ((self.log_start - log_time) / self.width).unsqueeze(1)
        last = self.rates.shape[1] - 1
        index = elapsed.clamp(max=last).long().clamp(max=last - 1)
        first, second, area = (
            table.gather(1, place)
            for table, place in ((self.rates, index), (self.rates, index + 1), (self._before(), index))
        )
        part = (elapsed - index).clamp(max=1)
        rate = first + (second - first) * part
        total = area + (first + rate) / 2 * part * self.width.unsqueeze(1)
        return total.squeeze(1), rate.masked_fill(elapsed > last, 0.0).squeeze(1)
