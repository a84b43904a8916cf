"""Star graphs: find the path from a source to a goal in a shuffled list of edges."""

from xlm.tasks.star.dataset import PublishedStarRow, StarRow, encode_star, star_rows
from xlm.tasks.star.graphs import LEVELS, StarLevel
from xlm.tasks.star.metrics import StarMetrics

__all__ = [
    "LEVELS",
    "PublishedStarRow",
    "StarLevel",
    "StarMetrics",
    "StarRow",
    "encode_star",
    "star_rows",
]
