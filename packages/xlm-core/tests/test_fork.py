"""A new run that starts from the state of another one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.core.config.errors import XLMError

from .conftest import Run

FORKED = (
    "job_type=train",
    "test_after_training=false",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "lr_scheduler=cosine",
    "lr_scheduler.warmup=3",
    "+loss.noisy=true",
    "+task.source.token=null",
)


def state_of(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {
        "weights": content["state_dict"]["model.bias"],
        "moments": content["optimizer_states"][0]["state"][0]["exp_avg"],
        "lr": content["lr_schedulers"][0]["_last_lr"],
        "step": content["global_step"],
        "batches": content["DataModule"]["batches_done"],
    }


def test_a_fork_without_a_change_is_the_run_that_goes_on(run_toy: Run, tmp_path: Path) -> None:
    """Bit for bit: the same weights, moments, rate and place in the data."""
    runs = tmp_path / "runs"
    run_toy(*FORKED, "job_name=old", "trainer.max_steps=12", "checkpoint_interval=6")
    whole = state_of(runs / "old")
    (runs / "old/checkpoints/previous.ckpt").replace(runs / "old/checkpoints/last.ckpt")
    for best in (runs / "old/checkpoints").glob("best-*"):
        best.unlink()
    before = {path: path.read_bytes() for path in (runs / "old").rglob("*") if path.is_file()}
    run_toy(*FORKED, "job_name=new", "trainer.max_steps=12", f"from={runs / 'old'}")
    new = state_of(runs / "new")
    assert all(
        torch.equal(new[name], whole[name])
        if isinstance(whole[name], torch.Tensor)
        else new[name] == whole[name]
        for name in whole
    )
    assert before == {path: path.read_bytes() for path in (runs / "old").rglob("*") if path.is_file()}


def test_a_fork_takes_its_own_settings_and_says_what_differs(
    run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    run_toy(*FORKED, "job_name=old", "trainer.max_steps=6")
    changes = ("optimizer.lr=0.01", "optimizer.weight_decay=0.1", "trainer.accumulate_grad_batches=2",
               "trainer.val_check_interval=3", "trainer.max_steps=9")  # fmt: skip
    command = (*FORKED, "job_name=new", f"from={runs / 'old'}", *changes)
    capsys.readouterr()
    run_toy(*command)
    out = " ".join(capsys.readouterr().out.split())
    assert "forked from step 6:" in out
    for line in (
        "optimizer.lr 0.1 there, 0.01 here",
        "optimizer.weight_decay 0.0 there, 0.1 here",
        "trainer.max_steps 6 there, 9 here",
    ):
        assert line in out
    new = state_of(runs / "new")
    assert (new["step"], new["batches"]) == (9, 18)
    group = torch.load(runs / "new/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0][
        "param_groups"
    ][0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.01, 0.1)
    # The schedule is that of a run which had these settings from its first step on.
    run_toy(*FORKED, "job_name=fresh", *changes)
    assert new["lr"] == state_of(runs / "fresh")["lr"]
    # The same command resumes the fork; the old run is no longer read.
    shutil.move(runs / "old", runs / "elsewhere")
    capsys.readouterr()
    run_toy(*command, "trainer.max_steps=12")
    assert "at step 9:" in capsys.readouterr().out


def test_a_fork_of_nothing_is_refused(run_toy: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = (*FORKED, "trainer.max_steps=4", "job_name=new")
    run_toy(*FORKED, "trainer.max_steps=4", "job_name=old")
    old = f"from={runs / 'old'}"
    for arguments, message in (
        (("from=runs/nowhere",), "from=runs/nowhere: there is no such folder"),
        ((f"from={runs / 'new'}",), "this is the run itself"),
        ((f"from={runs}",), r"config\.yaml cannot be read"),
        ((old,), "it is at step 4 of the 4 that trainer.max_steps allows"),
        ((old, "job_type=eval"), "from: only job_type=train starts from another run"),
        ((old, "ckpt_path=x"), "from and ckpt_path: set one of them"),
        ((old, "trainer.max_steps=8", "model.vocab_size=7"), "no checkpoint in .* fits this run"),
    ):
        with pytest.raises(XLMError, match=message):
            run_toy(*command, *arguments)
