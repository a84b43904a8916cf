"""The records: what is not plain data in them."""

import dataclasses

import pytest
import torch

from xlm.modules.records import INSERT, WRITE, Prediction, Trace, TracedPrediction, edits_of_step
from xlm.modules.testing import replay


def ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def edits() -> Trace:
    """Row 0 becomes 7 8 9 by two insertions at once, a third in between and a write; row 1 becomes 5."""
    return Trace.of(
        [
            edits_of_step(0, INSERT, ints(0, 0, 1), ints(0, 1, 0), ints(7, 9, 4)),
            edits_of_step(1, INSERT, ints(0), ints(1), ints(3)),
            edits_of_step(2, INSERT, ints(), ints(), ints()),
            edits_of_step(3, WRITE, ints(0, 1), ints(1, 0), ints(8, 5)),
        ]
    )


def test_tables_of_edits_become_the_trace_that_replays_them() -> None:
    trace = edits()
    assert replay(trace, 0) == [7, 8, 9]
    assert replay(trace, 1) == [5]
    assert trace.step.tolist() == [0, 0, 0, 1, 3, 3]
    assert trace.operation.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_traced_prediction_is_a_prediction_and_neither_changes() -> None:
    prediction = TracedPrediction(ids=ints(7, 8, 9)[None], lengths=ints(3), nfe=ints(2), trace=edits())
    assert isinstance(prediction, Prediction)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.ids = ints()[None]  # pyright: ignore[reportAttributeAccessIssue]  # frozen
