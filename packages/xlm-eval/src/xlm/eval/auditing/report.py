"""The result of an audit: what was checked, what was measured, and what is wrong."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One claim, and whether it holds."""

    claim: str
    """What is checked, such as ``the loss is an upper bound of -log p``."""
    measured: str
    """The numbers, or why it could not be checked."""
    holds: bool | None
    """None: not checked."""

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "holds", False: "WRONG", None: "not checked"}[self.holds]


@dataclass(frozen=True)
class Report:
    """All checks of an audit."""

    checks: tuple[Check, ...]
    error_probability: float
    """Bound of the probability that a correct loss and sampler fail a check with random numbers, if means
    over the draws are normally distributed."""

    @staticmethod
    def of(checks: Iterable[Check], error_probability: float) -> "Report":
        """The report of checks that are run one after another."""
        found = tuple(checks)
        return Report(found, error_probability * len(found))

    @property
    def mistakes(self) -> tuple[Check, ...]:
        """Checks of claims that do not hold."""
        return tuple(check for check in self.checks if check.holds is False)

    def markdown(self) -> str:
        """A table of the checks."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "| claim | verdict | measured |"
        yield "|---|---|---|"
        for check in self.checks:
            yield f"| {check.claim} | {check.verdict} | {check.measured} |"
        yield ""
        yield (
            f"{len(self.mistakes)} of {len(self.checks)} claims are wrong. A correct loss and sampler fail a "
            f"check with random numbers with probability below {self.error_probability:.1g}."
        )

    def as_json(self) -> dict[str, Any]:
        """The checks as JSON."""
        checks = [
            {"claim": check.claim, "holds": check.holds, "measured": check.measured} for check in self.checks
        ]
        return {"checks": checks, "error_probability": self.error_probability}
