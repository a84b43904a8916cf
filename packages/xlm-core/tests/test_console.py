"""The console: what is printed is data, never markup; the progress bar counts optimizer steps."""

import ast
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

import xlm.core
from xlm.core.command import doctor
from xlm.core.config.console import make_console
from xlm.core.evaluation import report
from xlm.core.evaluation.predictions import Frame, TracedText
from xlm.core.protocols import Generation
from xlm.core.training.callbacks import TrainingProgress

from .conftest import Run

HOSTILE = "a [red] b [/red] [/] :smile: [link=x]y[/link] \\[x]"


def test_a_line_of_data_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    long = HOSTILE + " word" * 100
    make_console().print(long)
    make_console(stderr=True).print(Text(long, style="bold"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (long + "\n", long + "\n")


def test_texts_metrics_files_and_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my [red] runs" / "x"
    file.mkdir(parents=True)
    generation = Generation(
        prompt_ids=[1], ids=[1], reference_ids=[1], prompt=HOSTILE, text=HOSTILE, reference=HOSTILE
    )
    frames = [Frame(0, ["[/red]", ":smile:"], set())]
    report.print_start("eval", file, {HOSTILE: HOSTILE})
    report.print_traces({"[/red]": [TracedText(0, generation, frames)]})
    report.print_metrics({"[/b]/[red]m": 1.0})
    report.print_files({"[red]": file})
    report.print_kept([("[/red]", HOSTILE)])
    printed = capsys.readouterr().out
    assert printed.count(HOSTILE) == 5
    assert printed.count(str(file)) == 2
    for text in ("[/red], generation 1", "  [/red]  :smile: ", "[/b]", "[red]m", "  [/red]               "):
        assert text in printed


def test_a_run_whose_folder_and_texts_look_like_markup(
    run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_toy(
        "job_type=train",
        f"output_dir='{tmp_path}/my [/red] runs'",
        f"datamodule.cache_dir='{tmp_path}/[bold]'",
        "trainer.max_steps=5",
        "trainer.val_check_interval=5",
        "callbacks=[samples,throughput]",
    )
    printed = capsys.readouterr().out
    for path in ("my [/red] runs/toy/metrics.json", "my [/red] runs/toy/predictions.jsonl"):
        assert f"{tmp_path}/{path}\n" in printed
    assert f"prepared in {tmp_path}/[bold]/toy/" in printed


def test_doctor_prints_paths_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a [/red] :smile: b"
    monkeypatch.setenv("XLM_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder))
    doctor.main()
    assert capsys.readouterr().out.count(f"in {folder} (does not exist yet)\n") == 2


def test_every_console_is_made_in_one_place() -> None:
    [root] = xlm.core.__path__
    makers = {
        str(path.relative_to(root))
        for path in Path(root).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in {"rich.console", "rich.markup", "rich"}
    }
    assert makers == {"config/console.py"}


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
