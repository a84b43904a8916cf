"""The callbacks and opt-in debug groups of a run."""

import csv
import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from xlm.core.evaluation.evaluation import Evaluation
from xlm.core.training.callbacks import TrainingProgress
from xlm.core.training.harness import Harness

from . import toy_family
from .conftest import Run

TRAIN = ("job_type=train", "test_after_training=false", "trainer.log_every_n_steps=1")


def logged(tmp_path: Path, column: str) -> list[float]:
    """A metric of the run's curves, in the order of steps."""
    [file] = (tmp_path / "runs/toy").glob("csv/version_*/metrics.csv")
    with file.open() as lines:
        return [float(row[column]) for row in csv.DictReader(lines) if row.get(column)]


def test_metrics_of_the_training(run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy(*TRAIN, "callbacks=[throughput,gradient_norm,samples,memory]", "trainer.max_steps=5")
    # All tokens are 3; the untrained softmax gives 1/6 to each of 6.
    assert logged(tmp_path, "train/gradient_norm")[0] == pytest.approx(math.sqrt(5 / 36 + 25 / 36))
    assert len(logged(tmp_path, "train/gradient_norm")) == 5
    tokens = logged(tmp_path, "throughput/tokens_per_second")
    steps = logged(tmp_path, "throughput/steps_per_second")
    # 5 steps see 20 rows once: prompts of one token, targets of one, two and three.
    assert sum(t / s for t, s in zip(tokens, steps, strict=True)) == pytest.approx(20 + 7 * 1 + 7 * 2 + 6 * 3)
    memory = logged(tmp_path, "DeviceStatsMonitor.on_train_batch_end/cpu_vm_percent")
    assert all(0 < percent < 100 for percent in memory)
    assert not logged(tmp_path, "throughput/flops_utilisation")
    output = capsys.readouterr().out
    assert "no flops_utilisation, since the peak of this cpu is unknown" in output
    assert "val/prediction  2  ->  3 3" in output
    assert "expected  3 3" in output


class _Clock:
    """A clock that advances by 1 in a micro-batch of training and by 100 in a batch of validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("xlm.core.training.stopwatch.time", self)
        for owner, method, seconds in ((Harness, "training_step", 1.0), (Evaluation, "update", 100.0)):
            monkeypatch.setattr(owner, method, self._advancing(getattr(owner, method), seconds))

    def perf_counter(self) -> float:
        return self.now

    def _advancing(self, method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def advancing(*arguments: Any) -> Any:
            self.now += seconds
            return method(*arguments)

        return advancing


def test_tokens_and_seconds_are_recorded_at_each_validation_also_of_a_resumed_training(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Clock(monkeypatch)
    train = (*TRAIN, "lr_scheduler=constant", "trainer.accumulate_grad_batches=2")
    train = (*train, "trainer.val_check_interval=1", "datamodule.train.lm.batch_size=2")
    for steps in (2, 5):
        run_toy(*train, f"trainer.max_steps={steps}")
    run = tmp_path / "runs/toy"
    files = sorted(run.glob("csv/version_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    found = {
        column: [float(row[f"training/{column}"]) for row in rows if row.get(f"training/{column}")]
        for column in ("tokens", "seconds")
    }
    assert found["seconds"] == [2, 4, 6, 8, 10]
    # 5 steps see 20 rows once: prompts of one token, targets of one, two and three.
    assert len(found["tokens"]) == 5
    assert found["tokens"] == sorted(found["tokens"])
    assert found["tokens"][-1] == 20 + 7 * 1 + 7 * 2 + 6 * 3
    assert json.loads((run / "versions.json").read_text())["training"] == {"tokens": 59, "seconds": 10}


class _MixingToy(toy_family.ToyModel):
    """The toy with one matrix product for each cell."""

    def __init__(self, *, vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self.mix = torch.nn.Linear(vocab_size, vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mix(super().forward(ids))


def test_the_share_of_a_known_peak(run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_family as imported

    def peak(device: torch.device, dtype: torch.dtype) -> int:
        assert (device.type, dtype) == ("cpu", torch.float32)
        return 1000

    monkeypatch.setattr(imported, "MixingToy", _MixingToy, raising=False)
    monkeypatch.setattr("xlm.core.training.callbacks.throughput.get_available_flops", peak)
    # Every batch is all rows: 3 + 3 + 3 of one, two, three tokens, padded to three.
    rows = ("task.source.num_rows=9", "datamodule.train.lm.batch_size=9")
    run_toy(
        *TRAIN, "callbacks=throughput", "model._target_=toy_family.MixingToy", "trainer.max_steps=4", *rows
    )
    shares = logged(tmp_path, "throughput/flops_utilisation")
    steps = logged(tmp_path, "throughput/steps_per_second")
    assert len(steps) == 4
    flops_of_step = 3 * (9 * 3) * (2 * 6 * 6)
    assert shares == pytest.approx([flops_of_step * rate / 1000 for rate in steps])


def test_norms_and_throughput_are_off_by_default(run_toy: Run, tmp_path: Path) -> None:
    run_toy(*TRAIN, "trainer.max_steps=2")
    assert not logged(tmp_path, "train/gradient_norm")
    assert not logged(tmp_path, "throughput/steps_per_second")


class _Readings(TorchDispatchMode):
    """Notes which function of which file reads a number out of a tensor while a batch is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            stack = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
            # Batches are made on the CPU, usually by workers.
            of_loader = any(file.name == "dataloader.py" for file, _ in stack)
            if any(file.name == "training_epoch_loop.py" for file, _ in stack) and not of_loader:
                # torch puts two functions of its own around this one.
                file, name = [entry for entry in stack[:-1] if entry[1] not in ("inner", "_fn")][-1]
                self.places.add(f"{file.name}: {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:The number of training batches")  # nothing is logged, as intended
def test_a_step_reads_no_number_from_the_device(run_toy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would synchronise with a GPU; includes the progress bar, which shows the loss."""
    shown: list[Any] = []
    get_metrics = TrainingProgress.get_metrics

    def spy(self: TrainingProgress, *arguments: Any) -> Any:
        shown.append(get_metrics(self, *arguments).get("train/loss"))
        return get_metrics(self, *arguments)

    monkeypatch.setattr(TrainingProgress, "get_metrics", spy)
    with _Readings() as readings:
        run_toy(
            *("job_type=train", "test_after_training=false", "trainer.max_steps=4"),
            *("trainer.val_check_interval=null", "callbacks.learning_rate=null"),
            *("logger.csv=null", "logger.tensorboard=null"),
            "callbacks.progress={_target_: xlm.core.training.callbacks.TrainingProgress}",
        )
    assert readings.places == {
        "harness.py: on_train_batch_start",  # the seed, made on the CPU
        "step.py: check",  # the numbers of the step before, sent to the host meanwhile
    }
    # The untrained softmax gives 1/6 to each of 6 tokens.
    assert shown[:2] == [None, pytest.approx(math.log(6))]
    assert shown[1] > shown[2] > shown[3]


def test_a_run_that_stopped_early_stays_finished(
    run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (
        *TRAIN,
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=2",
        "trainer.val_check_interval=2",
    )
    run_toy(*overrides)
    last = tmp_path / "runs/toy/checkpoints/last.ckpt"
    content = last.read_bytes()
    # The first validation is the best one: the toy predicts its only token after two steps.
    assert torch.load(last, weights_only=True)["global_step"] == 6
    capsys.readouterr()
    run_toy(*overrides)
    assert "stopped early at step 6" in capsys.readouterr().out
    assert last.read_bytes() == content


def test_a_profile_opens_in_a_viewer(run_toy: Run, tmp_path: Path) -> None:
    run_toy("job_type=train", "debug=profile", "test_after_training=false")
    traces = list((tmp_path / "runs/toy/profile").glob("*.json"))
    assert traces
    events = json.loads(traces[0].read_text())["traceEvents"]
    complete = [event for event in events if event.get("ph") == "X"]
    assert any(event["name"] == "aten::log_softmax" for event in complete)
    assert all({"ts", "dur", "pid", "tid"} <= event.keys() for event in complete)


class _BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is NaN."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float("nan")


@pytest.mark.filterwarnings(
    "ignore:Error detected in _BadGradientBackward"
)  # names the operation, as intended
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_names_the_operation(run_toy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_family

    def nll(self: object, model: torch.nn.Module, batch: toy_family.ToyBatch) -> torch.Tensor:
        return _BadGradient.apply(model(batch["target_ids"])).sum((-1, -2))

    monkeypatch.setattr(toy_family.ToyLoss, "nll", nll)
    with pytest.raises(RuntimeError, match="_BadGradientBackward"):
        run_toy(*TRAIN, "debug=anomaly")
