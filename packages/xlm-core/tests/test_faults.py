"""Faults of the machine in a training: each ends in a line, with the right exit code, in time."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xlm.core.config.machine import explained

from .conftest import Run
from .test_processes import CODE_OF_KILL, PAIR, PLAIN, Server, two_processes

SOON = 30
"""Seconds in which the other processes end."""


def accident(kind: str, batch: int = 3) -> str:
    return f"+callbacks.accident={{_target_: toy_accidents.FaultAt, batch: {batch}, kind: {kind}}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults"))
    yield server
    server.process.communicate()


def fault_of(run_toy: Run, *overrides: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # what is tested is what is said of it
        run_toy("job_type=train", "checkpoint_interval=2", *overrides)
    told = explained(caught.value)
    assert told is not None
    assert told.exit_code == 1
    assert "\n" not in str(told)
    return str(told)


def test_no_memory_in_a_step(run_toy: Run, tmp_path: Path) -> None:
    assert "Fewer rows at once" in fault_of(run_toy, accident("memory"))
    assert (tmp_path / "runs/toy/checkpoints/last.ckpt").exists()
    assert run_toy("job_type=train", "checkpoint_interval=2")["test/prediction/exact_match"] == 1.0


# TensorBoard's own thread ends by the same error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_folder_is_deleted(run_toy: Run) -> None:
    told = fault_of(run_toy, accident("deleted"))
    assert "is not there. Was it moved or deleted meanwhile?" in told


def test_a_folder_that_cannot_be_written(run_toy: Run) -> None:
    told = fault_of(run_toy, "output_dir=/sys/kernel")  # of the system, hence also for an administrator
    assert told.startswith("/sys/kernel/toy: ")
    assert "Name a place that may be written: output_dir=FOLDER" in told


def test_a_full_disk_keeps_the_checkpoint_before(server: Server) -> None:
    command = (*PLAIN, "job_name=full", "checkpoint_interval=2")
    [(code, log)] = server.run(*command, accident("limit"))
    assert code == 1
    assert "a file may not become larger here. Raise the limit (ulimit -f)" in log.splitlines()[-1]
    [(code, log)] = server.run(*command)
    assert code == 0, log
    assert "resuming" in log


def test_a_killed_process_ends_the_other_soon(server: Server) -> None:
    start = time.monotonic()
    command = (*PLAIN, "job_name=pair", *PAIR, "trainer.strategy=ddp", "checkpoint_interval=2")
    results = server.run(*command, accident("killed"), environments=two_processes())
    assert time.monotonic() - start < SOON
    assert [code for code, _ in results] == [1, CODE_OF_KILL], results
    assert "Another process of this run has ended" in results[0][1].splitlines()[-1]
