"""The content of plots, without the library that draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Point:
    """A mean with its interval, at a place of the horizontal axis."""

    x: float
    y: float
    low: float
    high: float
    note: str = ""
    """A short text beside the marker."""


@dataclass(frozen=True)
class Plot:
    """The axes of a plot and its series of points, by name."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[Point]]
    kind: Literal["points", "curves"]
    """Points have bars and notes; curves have shaded intervals."""
    notes: str | None = None
    """What the notes of the points are."""
