"""Assertions on tensors, with a message that shows the difference."""

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from xlm.modules.testing.parts import LossOutput


@contextmanager
def no_global_draws(name: str) -> Generator[None]:
    """A block that must not draw from torch's global generator."""
    state = torch.get_rng_state()
    yield
    same = torch.equal(torch.get_rng_state(), state)
    assert same, f"{name} drew from torch's global generator, not from the seeds of the rows"


def assert_same_total(parts: Iterable[LossOutput], whole: LossOutput, name: str) -> None:
    """The sums and counts of some losses add up to those of another."""
    outputs = list(parts)
    assert_close(sum(output.loss_sum for output in outputs), whole.loss_sum, f"{name} loss_sum; they")
    assert_close(sum(output.loss_count for output in outputs), whole.loss_count, f"{name} loss_count; they")


def assert_equal(actual: object, expected: object, name: str) -> None:
    """The same values, bit by bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=lambda found: f"{name} differ.\n{found}")


def assert_close(actual: object, expected: object, name: str, *, rtol: float = 1e-9) -> None:
    """The same values, up to rounding."""

    def message(found: str) -> str:
        return f"{name} differ.\n{found}"

    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol, check_dtype=False, msg=message)


def refused_ids(beyond: int) -> AbstractContextManager[object]:
    """A block that ends in one ValueError, with an id that is not of the vocabulary."""
    return pytest.raises(
        ValueError, match=rf"ids are between .*{beyond}\b.*, those of the vocabulary between"
    )
