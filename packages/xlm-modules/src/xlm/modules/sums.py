"""The state of a metric: sums by name, so that those of several batches and processes add up."""

from collections.abc import Mapping

from torch import Tensor


def add_sums(sums: Mapping[str, Tensor], added: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each of the sums with what is added to it, on the device of the latter, which nothing waits for.

    Args:
        sums: The sums so far, of any shape.
        added: What a batch adds, with the same names and shapes; no gradient is kept.
    """
    return {name: total.to(added[name].device) + added[name].detach() for name, total in sums.items()}
