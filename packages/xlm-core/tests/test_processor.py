"""Messages of a run about its processor."""

import os

import pytest
import torch

from xlm.core.command import compose
from xlm.core.training import processor

from .conftest import Run


def test_slow_half_precision_is_said_with_its_factor(
    run_toy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {torch.float32: 0.5, torch.bfloat16: 26.0}
    monkeypatch.setattr(processor, "_seconds", seconds.__getitem__)
    run_toy("job_type=train", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.1")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("bfloat16 takes 52.0 times as long as in float32 on this CPU") == 1
    assert "trainer.precision=32-true is faster" in printed


@pytest.mark.parametrize(
    ("precision", "half"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16), ("32-true", None)]
)
def test_only_what_is_slower_is_noted(
    precision: str, half: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []

    def quick(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return 1.0 if dtype == torch.float32 else 0.25

    monkeypatch.setattr(processor, "_seconds", quick)
    assert processor.note_on_precision(precision) is None
    assert asked == ([] if half is None else [half, torch.float32])


def test_a_product_takes_time_in_every_precision() -> None:
    assert all(processor.slowdown(dtype) > 0 for dtype in (torch.bfloat16, torch.float16))


def test_a_run_says_its_threads(
    run_toy: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    run_toy("job_type=train")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"threads {torch.get_num_threads()} on the CPU (OMP_NUM_THREADS), waiting: passive" in printed


@pytest.mark.parametrize("chosen", [None, "active"])
def test_waiting_threads_leave_the_core_unless_chosen_otherwise(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")  # noted, hence restored afterwards
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    compose.let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == (chosen or "passive")
