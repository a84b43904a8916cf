"""Faults of the machine in a training: each ends in a line, with the right exit code."""

from pathlib import Path

import pytest

from xlm.core.config.machine import explained

from .conftest import Run


def accident(kind: str) -> str:
    return f"+callbacks.accident={{_target_: toy_accidents.FaultAt, batch: 3, kind: {kind}}}"


def fault_of(run_toy: Run, *overrides: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test checks its message
        run_toy("job_type=train", "checkpoint_interval=2", *overrides)
    message = explained(caught.value)
    assert message is not None
    assert message.exit_code == 1
    assert "\n" not in str(message)
    return str(message)


def test_no_memory_in_a_step(run_toy: Run, tmp_path: Path) -> None:
    assert "Fewer rows at once" in fault_of(run_toy, accident("memory"))
    assert (tmp_path / "runs/toy/checkpoints/last.ckpt").exists()
    assert run_toy("job_type=train", "checkpoint_interval=2")["test/prediction/exact_match"] == 1.0


# TensorBoard's own thread ends by the same error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_folder_is_deleted(run_toy: Run) -> None:
    message = fault_of(run_toy, accident("deleted"))
    assert "does not exist. Was it moved or deleted?" in message


def test_a_folder_that_cannot_be_written(run_toy: Run) -> None:
    message = fault_of(run_toy, "output_dir=/sys/kernel")  # of the system, hence also for an administrator
    assert message.startswith("/sys/kernel/toy: ")
    assert "Choose writable folders: output_dir=FOLDER" in message
