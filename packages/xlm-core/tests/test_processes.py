"""Trainings in real processes: killed, stopped, failed, and several at once."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xlm.core.saving.versions import read_versions
from xlm.core.training.sharding import CAN_SHARD_ON_CPUS

from .conftest import Server
from .runs import curve, repeatable, validations

CODE_OF_KILL = 137
SOON = 30
"""Seconds in which the other processes end."""

# The loss of a step depends on its rows and their noise.
REVEALING = ("+task.source.token=null", "+loss.noisy=true")
HARD = (
    # Everything that a resumed run could get wrong at once. Validation falls amid and onto checkpoints.
    *REVEALING,
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "lr_scheduler=cosine",
    "lr_scheduler.warmup=3",
    "optimizer.lr=0.02",
    "+model.dropout=0.3",
    "trainer.accumulate_grad_batches=2",
    "datamodule.train.lm.num_workers=2",
    "datamodule.train.lm.bucketing=3",
    "trainer.max_steps=20",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=1",
    "checkpoint_interval=4",
    "test_after_training=false",
)


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def learnt(content: dict[str, Any]) -> dict[str, Tensor]:
    """Everything learnt: averaged and trained weights, and the optimizer's moments."""
    moments = content["optimizer_states"][0]["state"][0]
    return {
        "average": content["state_dict"]["model.bias"],
        "trained": content["current_model_state"]["model.bias"],
        "first moment": moments["exp_avg"],
        "second moment": moments["exp_avg_sq"],
        "rate": torch.tensor(content["lr_schedulers"][0]["_last_lr"]),
    }


def state(run: Path) -> dict[str, Tensor]:
    return learnt(checkpoint(run))


def assert_same_checkpoint(content: dict[str, Any], expected: dict[str, Any]) -> None:
    """They resume alike: only the names of the best checkpoints may differ."""
    ours, theirs = learnt(content), learnt(expected)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for key in ("global_step", "loops", "lr_schedulers", "DataModule"):
        assert content[key] == expected[key], key


@pytest.fixture(scope="module")
def uninterrupted(server: Server) -> Path:
    code, log = server.train("job_name=uninterrupted", *HARD)
    assert code == 0, log
    return server.root / "runs" / "uninterrupted"


def assert_same(run: Path, uninterrupted: Path) -> None:
    assert curve(run) == curve(uninterrupted)
    assert sorted(curve(run)) == list(range(20))
    assert validations(run) == validations(uninterrupted)
    assert len(validations(run)) == 4
    ours, theirs = state(run), state(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [path.name for path in sorted(run.glob("checkpoints/best-*"))] == [
        path.name for path in sorted(uninterrupted.glob("checkpoints/best-*"))
    ]


def test_killed_three_times_a_run_ends_as_if_uninterrupted(server: Server, uninterrupted: Path) -> None:
    accidents = (
        # amid an accumulation; in the validation at step 10; while the checkpoint of step 16 is written
        "+callbacks.accident={_target_: toy_accidents.SignalAt, batch: 13}",
        "+callbacks.accident={_target_: toy_accidents.SignalAt, batch: 19, moment: validation}",
        "+callbacks.accident={_target_: toy_accidents.KillInSave, step: 16}",
    )
    run = server.root / "runs" / "killed"
    for accident in accidents:
        code, log = server.train("job_name=killed", *HARD, accident)
        assert code == CODE_OF_KILL, log
    assert (run / "checkpoints" / ".last.ckpt.part").exists()
    code, log = server.train("job_name=killed", *HARD)
    assert code == 0, log
    assert "resuming" in log
    assert "at step 15" in log  # the best checkpoint, newer than last.ckpt
    assert_same(run, uninterrupted)


def test_damaged_checkpoints_are_skipped_and_kept(server: Server, uninterrupted: Path) -> None:
    code, _ = server.train(
        "job_name=damaged", *HARD, "+callbacks.accident={_target_: toy_accidents.SignalAt, batch: 27}"
    )
    assert code == CODE_OF_KILL
    run = server.root / "runs" / "damaged"
    last = run / "checkpoints" / "last.ckpt"  # of step 12
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    last.write_bytes(damaged)
    for best in run.glob("checkpoints/best-*"):
        best.write_bytes(best.read_bytes()[:1000])
    code, log = server.train("job_name=damaged", *HARD)
    assert code == 0, log
    assert "last.ckpt is skipped" in log
    assert "at step 8" in log  # previous.ckpt
    assert_same(run, uninterrupted)


TERMINATED = "+callbacks.accident={_target_: toy_accidents.SignalAt, name: SIGTERM, batch: 13}"


@pytest.fixture(scope="module")
def terminated(server: Server) -> dict[str, Any]:
    """The checkpoint of a run that was stopped by SIGTERM after step 6."""
    code, log = server.train("job_name=terminated", *HARD, TERMINATED)
    assert code == 143, log
    assert "stopped by SIGTERM after step 6" in log
    assert "resumes from there" in log
    return checkpoint(server.root / "runs" / "terminated")


def test_a_terminated_run_ends_as_if_uninterrupted(
    server: Server, terminated: dict[str, Any], uninterrupted: Path
) -> None:
    assert terminated["global_step"] == 6
    code, log = server.train("job_name=terminated", *HARD)
    assert code == 0, log
    assert "at step 6:" in log
    assert_same(server.root / "runs" / "terminated", uninterrupted)


@pytest.mark.parametrize(
    ("name", "accident", "expected_code", "message", "step"),
    [
        (
            "validated",
            "SignalAt, name: SIGTERM, batch: 19, moment: validation",
            143,
            "SIGTERM after step 10",
            10,
        ),
        ("failed", "FailAt, batch: 13", 1, "step 6 is in", 6),
    ],
)
def test_a_run_that_stopped_elsewhere_ends_as_if_uninterrupted(
    name: str,
    accident: str,
    expected_code: int,
    message: str,
    step: int,
    server: Server,
    uninterrupted: Path,
) -> None:
    node = f"+callbacks.accident={{_target_: toy_accidents.{accident}}}"
    code, log = server.train(f"job_name={name}", *HARD, node)
    assert code == expected_code, log
    assert message in log
    assert "resumes from there" in log
    code, log = server.train(f"job_name={name}", *HARD)
    assert code == 0, log
    assert f"at step {step}:" in log
    assert_same(server.root / "runs" / name, uninterrupted)


def test_an_interrupt_leaves_the_checkpoint_of_a_terminated_run(
    server: Server, terminated: dict[str, Any]
) -> None:
    node = "+callbacks.accident={_target_: toy_accidents.SignalAt, name: SIGINT, batch: 13}"
    code, log = server.train("job_name=interrupted", *HARD, node)
    assert code == 130, log
    assert "stopped by SIGINT after step 6" in log
    assert "resumes from there" in log
    assert_same_checkpoint(checkpoint(server.root / "runs" / "interrupted"), terminated)


def test_a_second_interrupt_ends_the_process_at_once(server: Server) -> None:
    node = "+callbacks.accident={_target_: toy_accidents.SignalAt, name: SIGINT, batch: 13, times: 2}"
    code, _ = server.train("job_name=impatient", *HARD, node)
    assert code == 130
    assert checkpoint(server.root / "runs" / "impatient")["global_step"] == 4


def test_slurm_requeues_at_its_time_limit(server: Server, terminated: dict[str, Any]) -> None:
    tools = server.root / "bin"
    tools.mkdir()
    scontrol = tools / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ > {server.root / 'requeued'}\n")
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "xlm",
        "SLURM_LOCALID": "0",
        "SLURM_PROCID": "0",
        "SLURM_NODEID": "0",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    node = "+callbacks.accident={_target_: toy_accidents.SignalAt, name: SIGUSR1, batch: 13}"
    [(code, log)] = server.run("job_type=train", "job_name=slurm", *HARD, node, environments=[slurm])
    assert code == 138, log
    assert (server.root / "requeued").read_text() == "requeue 77\n"
    assert_same_checkpoint(checkpoint(server.root / "runs" / "slurm"), terminated)


def two_processes() -> list[dict[str, str]]:
    """The environments that ``torchrun --nproc-per-node 2`` gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


PLAIN = (
    *REVEALING,
    "job_type=train",
    "lr_scheduler=cosine",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "task.source.num_rows=21",
    "test_after_training=false",
)
AVERAGED = (*PLAIN, "callbacks=ema", "callbacks.ema.decay=0.8", "test_after_training=true")
PAIR = ("trainer.devices=2", "datamodule.batch_size=4")
SHARDS = pytest.mark.skipif(not CAN_SHARD_ON_CPUS, reason="this torch cannot shard on CPUs")
STRATEGIES = {"ddp": "trainer.strategy=ddp", "fsdp2": "+trainer/strategy=fsdp2"}


@pytest.fixture(scope="module")
def single(server: Server) -> Path:
    """What one process learns from the same global batches."""
    [(code, log)] = server.run(*AVERAGED, "job_name=single", "datamodule.batch_size=8")
    assert code == 0, log
    return server.root / "runs" / "single"


def assert_close(run: Path, single: Path) -> None:
    ours, theirs = curve(run), curve(single)
    assert ours.keys() == theirs.keys() == set(range(8))
    assert [float(value) for value in ours.values()] == pytest.approx([float(v) for v in theirs.values()])
    mine, other = state(run), state(single)
    for name in other:
        torch.testing.assert_close(mine[name], other[name], msg=name)
    assert (other["average"] - other["trained"]).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=SHARDS)])
def test_two_processes_stop_at_the_same_step_and_learn_what_one_does(
    strategy: str, server: Server, single: Path
) -> None:
    """Losses, trained and averaged weights; 21 rows are uneven shards, and every one is evaluated once."""
    name = f"double_{strategy}"
    train = (*AVERAGED, f"job_name={name}", *PAIR, STRATEGIES[strategy])
    node = "+callbacks.accident={_target_: toy_accidents.SignalAt, name: SIGTERM, batch: 3}"
    results = server.run(*train, node, environments=two_processes())
    assert [code for code, _ in results] == [143, 143], results
    assert "after step 4" in results[0][1]
    results = server.run(*train, environments=two_processes())
    assert [code for code, _ in results] == [0, 0], results
    assert "at step 4:" in results[0][1]
    double = server.root / "runs" / name
    assert_close(double, single)
    totals = [read_versions(run / "versions.json")["training"] for run in (single, double)]
    assert totals[0]["tokens"] == totals[1]["tokens"] > 0
    metrics = [repeatable(json.loads((run / "metrics.json").read_text())) for run in (single, double)]
    assert metrics[1] == pytest.approx(metrics[0])
    rows = [json.loads(line) for line in (double / "predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(21))
    evaluate = ("job_type=eval", f"job_name={name}", "task.source.num_rows=21", *REVEALING, *PAIR, FAILING)
    evaluated = rows_before_a_failure(server, double, *evaluate) if strategy == "ddp" else []
    results = server.run(*evaluate, STRATEGIES[strategy], environments=two_processes())
    assert [code for code, _ in results] == [0, 0], results
    [file] = double.glob("eval/*/metrics.json")
    assert repeatable(json.loads(file.read_text())) == pytest.approx(metrics[0])
    assert "xlm train" not in results[1][1]  # only the first process talks
    # Lines have the seconds of their evaluation, so those before the failure were not evaluated again.
    assert set(evaluated) <= set(file.with_name("predictions.jsonl").read_text().splitlines())
    assert not list(file.parent.glob(".*"))


FAILING = "+callbacks.accident={_target_: toy_accidents.FailInTest}"


def rows_before_a_failure(server: Server, run: Path, *evaluate: str) -> list[str]:
    """The rows that both processes have written when the second one fails."""
    environments = [{**environment, "TOY_FAILS": "1"} for environment in two_processes()]
    results = server.run(*evaluate, STRATEGIES["ddp"], environments=environments)
    assert all(code != 0 for code, _ in results), results
    parts = list(run.glob("eval/*/.predictions.jsonl.rank*"))
    evaluated = [line for part in parts for line in part.read_text().splitlines()]
    assert len(parts) == 2
    assert 0 < len(evaluated) < 21
    return evaluated


@SHARDS
def test_checkpoints_that_are_folders_are_resumed_and_exported(server: Server, single: Path) -> None:
    """Each process saves its part; one process makes a file of them."""
    folders = ("+trainer/strategy=fsdp2", "trainer.strategy.save_distributed_checkpoint=true")
    command = (*PLAIN, "job_name=folders", *PAIR, *folders)
    node = "+callbacks.accident={_target_: toy_accidents.SignalAt, name: SIGTERM, batch: 5}"
    results = server.run(*command, node, environments=two_processes())
    assert [code for code, _ in results] == [143, 143], results
    results = server.run(*command, environments=two_processes())
    assert [code for code, _ in results] == [0, 0], results
    assert "at step 6:" in results[0][1]
    assert "not written by this run" not in results[0][1]
    last = server.root / "runs/folders/checkpoints/last.ckpt"
    assert all((path / ".metadata").is_file() for path in (last, last.with_name("previous.ckpt")))
    [(code, log)] = server.run(
        "job_type=export", "job_name=folders", *REVEALING, f"ckpt_path={last}", "allow_pickle=true"
    )
    assert code == 0, log
    [file] = last.parents[1].glob("export/*/model/model.safetensors")
    torch.testing.assert_close(load_file(file)["bias"], state(single)["trained"])


@SHARDS
def test_a_kill_while_a_folder_is_written_costs_nothing(server: Server, single: Path) -> None:
    folders = ("+trainer/strategy=fsdp2", "trainer.strategy.save_distributed_checkpoint=true")
    command = (*PLAIN, "job_name=half", *PAIR, *folders)
    node = "+callbacks.accident={_target_: toy_accidents.KillInSave, step: 8}"
    results = server.run(*command, node, environments=two_processes())
    assert results[0][0] == CODE_OF_KILL, results
    assert results[1][0] != 0, results
    half = server.root / "runs/half/checkpoints/.last.ckpt.part"
    assert (half / "meta.pt").is_file()
    (half / "__9_0.distcp").touch()  # of a process that is no longer there
    results = server.run(*command, environments=two_processes())
    assert [code for code, _ in results] == [0, 0], results
    assert "at step 4:" in results[0][1]
    assert not half.exists()
    last = half.with_name("last.ckpt")
    assert sorted(path.name for path in last.glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]


@SHARDS
def test_tensor_parallelism_is_refused(server: Server) -> None:
    strategy = (
        "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy, "
        "data_parallel_size: 1, tensor_parallel_size: 2}"
    )
    results = server.run(*PLAIN, "job_name=tensor", *PAIR, strategy, environments=two_processes())
    for code, log in results:
        assert code == 1, log
        assert "tensor_parallel_size is 2" in log
        assert "Traceback" not in log


FAULT = "+callbacks.accident={{_target_: toy_accidents.FaultAt, batch: 3, kind: {}}}"


def test_a_full_disk_keeps_the_checkpoint_before(server: Server) -> None:
    command = (*PLAIN, "job_name=full", "checkpoint_interval=2")
    [(code, log)] = server.run(*command, FAULT.format("limit"))
    assert code == 1
    assert "the file size limit is reached. Raise the limit (ulimit -f)" in log.splitlines()[-1]
    [(code, log)] = server.run(*command)
    assert code == 0, log
    assert "resuming" in log


def test_a_killed_process_ends_the_other_soon(server: Server) -> None:
    start = time.monotonic()
    command = (*PLAIN, "job_name=pair", *PAIR, "trainer.strategy=ddp", "checkpoint_interval=2")
    results = server.run(*command, FAULT.format("killed"), environments=two_processes())
    assert time.monotonic() - start < SOON
    assert [code for code, _ in results] == [1, CODE_OF_KILL], results
    assert "Another process of this run has ended" in results[0][1].splitlines()[-1]
