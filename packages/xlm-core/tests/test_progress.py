"""The progress bar counts optimizer steps of the whole run, also after a resume."""

from typing import Any

import pytest

from xlm.core.training.callbacks import TrainingProgress

from .conftest import Run

BAR = "callbacks.progress={_target_: xlm.core.training.callbacks.TrainingProgress}"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float | None]]:
    """Steps done and in all, at the start of a training and after each of its batches."""
    states: list[tuple[float, float | None]] = []
    for hook in ("on_train_start", "on_train_batch_end"):
        original = getattr(TrainingProgress, hook)

        def spy(self: TrainingProgress, *arguments: Any, original: Any = original) -> None:
            original(self, *arguments)
            states.append((self.train_progress_bar.completed, self.train_progress_bar.total))

        monkeypatch.setattr(TrainingProgress, hook, spy)
    return states


def test_steps_of_a_resumed_run(run_toy: Run, shown: list[tuple[float, float | None]]) -> None:
    common = (
        "job_type=train",
        "test_after_training=false",
        BAR,
        "lr_scheduler=constant",
        "trainer.log_every_n_steps=1",
    )
    run_toy(*common, "trainer.max_steps=5")
    assert shown == [(step, 5) for step in range(6)]
    shown.clear()
    run_toy(*common, "trainer.max_steps=8")
    assert shown == [(step, 8) for step in range(5, 9)]


def test_steps_of_several_micro_batches(run_toy: Run, shown: list[tuple[float, float | None]]) -> None:
    common = (
        "job_type=train",
        "test_after_training=false",
        BAR,
        "lr_scheduler=constant",
        "trainer.log_every_n_steps=1",
    )
    accumulated = (*common, "trainer.accumulate_grad_batches=2")
    run_toy(*accumulated, "trainer.max_steps=2")
    assert shown == [(0, 2), (0, 2), (1, 2), (1, 2), (2, 2)]
    shown.clear()
    run_toy(*accumulated, "trainer.max_steps=3")
    assert shown == [(2, 3), (2, 3), (3, 3)]
