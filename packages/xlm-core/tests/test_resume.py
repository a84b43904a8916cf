"""The checkpoint from which training resumes, skipped files, and the lock of a run."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.core.config.errors import XLMError
from xlm.core.saving.resume import newest_valid
from xlm.core.saving.run_lock import HOLDER, LOCK, only_writer

from .conftest import Run

SHORT = ("job_type=train", "test_after_training=false", "trainer.max_steps=8", "trainer.val_check_interval=8")


@pytest.fixture
def stopped(run_toy: Run, tmp_path: Path) -> Path:
    """A run of 8 steps with checkpoints of steps 4 and 8, which is then to make 12."""
    run_toy(*SHORT, "checkpoint_interval=4")
    folder = tmp_path / "runs" / "toy" / "checkpoints"
    for best in folder.glob("best-*"):
        best.unlink()
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
    return folder


def changed(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: {**content, **changes}


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: {key: value for key, value in content.items() if key != name}


def other_origin(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: {**content, "xlm_origin": {**content["xlm_origin"], name: "another.Class"}}


def other_groups(content: dict[str, Any]) -> object:
    [state] = content["optimizer_states"]
    return {**content, "optimizer_states": [{**state, "param_groups": state["param_groups"] * 2}]}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another network": (changed(state_dict={"model.a": torch.ones(6)}), "network: model.bias is missing"),
    "another shape": (changed(state_dict={"model.bias": torch.ones(7)}), "bias is (7,) there, (6,) here"),
    "another class": (other_origin("network"), "another network: another.Class, not toy_family.ToyModel"),
    "another family": (other_origin("loss"), "belongs to another loss: another.Class"),
    "another tokenizer": (other_origin("tokenizer"), "belongs to another tokenizer: another.Class"),
    "no optimizer": (changed(optimizer_states=[]), "it has no optimizer_states"),
    "optimizer of nothing": (changed(optimizer_states=[{}]), "it has no optimizer state"),
    "another optimizer": (other_groups, "belongs to another optimizer: its groups have [1, 1] weights"),
    "no schedule": (without("lr_schedulers"), "it has no lr_schedulers"),
    "no weights": (changed(state_dict=[1]), "it has no state_dict"),
    "no step": (without("global_step"), "it has no global_step"),
    "step a text": (changed(global_step="8"), "it has no global_step"),
    "step below 0": (changed(global_step=-1), "it has no global_step"),
    "no loops": (without("loops"), "it has no loops"),
    "no place in the data": (without("DataModule"), "it has no DataModule"),
    "a list": (list, "it holds a list"),
    "a tensor": (lambda content: torch.ones(3), "it holds a Tensor"),
    "format none": (changed(xlm_format_version=None), "its xlm_format_version is None"),
    "format a text": (changed(xlm_format_version="2"), "its xlm_format_version is '2'"),
    "format true": (changed(xlm_format_version=True), "its xlm_format_version is True"),
}  # fmt: skip


def test_a_checkpoint_that_is_whole_but_wrong_is_named_and_the_one_before_taken(
    stopped: Path, run_toy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each required key is checked; training resumes from one of the files."""
    last = stopped / "last.ckpt"
    content = torch.load(last, weights_only=True)
    fits = harness_of(run_toy)
    assert newest_valid(stopped, fits).refused == {}
    for name, (change, reason) in WRONG.items():
        torch.save(change(content), last)
        found = newest_valid(stopped, fits)
        assert found.header is not None, name
        assert (found.header.path.name, found.header.step) == ("previous.ckpt", 4), name
        assert list(found.refused) == [last], name
        assert reason in found.refused[last], name
        assert "\n" not in found.refused[last], name
    wrong = last.read_bytes()
    capsys.readouterr()
    run_toy(*SHORT, "trainer.max_steps=12")
    out = capsys.readouterr().out
    assert "last.ckpt is skipped: it is not a checkpoint of XLM: its xlm_format_version is True" in out
    assert "at step 4:" in out
    assert (stopped / "last.ckpt.refused").read_bytes() == wrong  # nothing is written over
    assert torch.load(last, weights_only=True)["global_step"] == 12


def harness_of(run_toy: Run) -> Any:
    """The checks of a run on a checkpoint."""
    from xlm.core.command import train

    asked: list[Any] = []

    def keep(trainer: object, harness: Any, datamodule: object, header: object) -> None:
        asked.append(harness.misfit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", keep)
        run_toy(*SHORT, "trainer.max_steps=12")
    return asked[0]


def test_a_run_without_any_usable_checkpoint_does_not_restart_silently(stopped: Path, run_toy: Run) -> None:
    for file in stopped.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(XLMError, match=r"No checkpoint in .* is usable.*move them away"):
        run_toy(*SHORT)
    assert [file.stat().st_size for file in stopped.iterdir()] == [100, 100]


# ---- starts that failed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("monitor=nope", "monitor=nope: the run has no such metric"),
        ("optimizer.lr=inf", "finite"),
        ("lr_scheduler.warmup=nan", "."),
    ],
)
def test_a_failed_start_does_not_block_the_right_command(
    mistake: str, message: str, run_toy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match=message):
        run_toy(*SHORT, mistake)
    run_toy(*SHORT)
    assert "restarted" in capsys.readouterr().out


def test_what_callbacks_wait_for_is_checked(run_toy: Run) -> None:
    with pytest.raises(
        XLMError, match=r"monitor=val/lm/nope: .* EarlyStopping monitors\. Did you mean val/lm/"
    ):
        run_toy(*SHORT, "callbacks=early_stopping", "callbacks.early_stopping.monitor=val/lm/nope")
    for monitor in ("train/token", "val/lm/nll_per_token"):
        run_toy(*SHORT, f"monitor={monitor}", "monitor_mode=min", f"job_name={monitor.replace('/', '-')}")


# ---- one writer -----------------------------------------------------------------------------------------


def test_a_second_training_is_refused_with_who_is_first(run_toy: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy"
    who = rf"is being trained by process {os.getpid()} on {socket.gethostname()} since \d{{4}}-"
    with only_writer(folder):
        with pytest.raises(XLMError, match=who):
            run_toy(*SHORT)
        assert {path.name for path in folder.iterdir()} == {LOCK, HOLDER}
    run_toy(*SHORT)
    assert not (folder / HOLDER).exists()


def test_other_ranks_belong_to_the_run(run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xlm.core.saving.run_folder import RunFolder

    with only_writer(tmp_path / "runs" / "toy"):
        monkeypatch.setenv("RANK", "1")
        with RunFolder(tmp_path / "runs" / "toy").writing():
            pass
        monkeypatch.setenv("RANK", "0")
        with (
            pytest.raises(XLMError, match="is being trained"),
            RunFolder(tmp_path / "runs" / "toy").writing(),
        ):
            pass


def test_a_lock_of_a_process_that_died_is_taken_over(run_toy: Run, tmp_path: Path) -> None:
    """The child is killed while it holds the lock; a child of its own lives on, as data workers do."""
    folder = tmp_path / "runs" / "toy"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with only_writer(folder):
            if os.fork() == 0:
                os.read(reading, 1)
                os._exit(0)
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert json.loads((folder / HOLDER).read_text())["pid"] == pid
    run_toy(*SHORT)
    os.write(writing, b"x")
    assert not (folder / HOLDER).exists()


def test_a_folder_with_nothing_but_a_lock_is_a_new_run(run_toy: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    (folder / LOCK).touch()
    (folder / HOLDER).write_text("[no json")
    run_toy(*SHORT)
