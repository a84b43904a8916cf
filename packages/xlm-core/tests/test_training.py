"""What the callbacks and the watch over each step do during a training, in this process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from xlm.core.config.build import make
from xlm.core.config.errors import XLMError
from xlm.core.training.callbacks import EMA
from xlm.core.training.harness import Harness
from xlm.core.training.run import resolve
from xlm.core.training.sharding import FSDP2
from xlm.core.training.trainer import make_trainer

from .conftest import Compose, Run

TRAIN = ("job_type=train", "test_after_training=false", "lr_scheduler=constant", "optimizer.lr=0.02")


def content(tmp_path: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(tmp_path / f"runs/toy/checkpoints/{name}.ckpt", weights_only=True)


def trained_at(tmp_path: Path, step: int) -> Tensor:
    found = content(tmp_path, f"step-{step:08d}")
    return found.get("current_model_state", found["state_dict"])["model.bias"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("trainer.accumulate_grad_batches=3",),
        # In bfloat16 an average with this decay would not move at all.
        ("trainer.precision=bf16-true", "callbacks.ema.decay=0.999", "callbacks.ema.warmup=0"),
    ],
    ids=["plain", "accumulated", "bf16"],
)
def test_the_average_is_that_of_every_optimizer_step(
    more: tuple[str, ...], run_toy: Run, tmp_path: Path
) -> None:
    every_step = "callbacks.thinning.every_n_train_steps=1"
    run_toy(*TRAIN, "callbacks=[ema,thinning]", "callbacks.ema.decay=0.8", every_step, *more)
    warmup, decay = (0, 0.999) if len(more) == 3 else (10, 0.8)
    expected = torch.zeros(6)  # the toy's initial weights
    for step in range(20):
        keep = decay if warmup == 0 else min(decay, (1 + step) / (warmup + step))
        expected = keep * expected + (1 - keep) * trained_at(tmp_path, step + 1).float()
    average = content(tmp_path)["state_dict"]["model.bias"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert average.abs().max() > 1e-3


def test_the_average_can_begin_in_the_middle_and_be_dropped(run_toy: Run, tmp_path: Path) -> None:
    run_toy(*TRAIN, "trainer.max_steps=5")
    start = content(tmp_path)["state_dict"]["model.bias"]
    run_toy(*TRAIN, "trainer.max_steps=6", "callbacks=ema", "callbacks.ema.decay=0.5")
    both = content(tmp_path)
    trained, average = both["current_model_state"]["model.bias"], both["state_dict"]["model.bias"]
    torch.testing.assert_close(average, 0.9 * trained + 0.1 * start)
    run_toy(*TRAIN, "trainer.max_steps=7", "callbacks=thinning", "callbacks.thinning.every_n_train_steps=1")
    assert "current_model_state" not in content(tmp_path)
    # Adam moves each weight by at most about the learning rate, from the trained weights on.
    assert (content(tmp_path)["state_dict"]["model.bias"] - trained).abs().max() <= 0.021


def test_bad_settings_of_the_average_are_refused() -> None:
    with pytest.raises(ValueError, match="decay is 1"):
        EMA(decay=1.0)
    with pytest.raises(ValueError, match="warmup is -1"):
        EMA(warmup=-1)
    assert EMA(decay=0.9, warmup=0).decay_at(0) == 0.9


def test_raw_and_averaged_weights_are_evaluated_on_request(run_toy: Run) -> None:
    run_toy(*TRAIN, "callbacks=ema", "callbacks.ema.decay=0.99")
    kinds = ("ema", "raw", "auto")
    losses = {which: run_toy("job_type=eval", f"weights={which}")["test/lm/loss"] for which in kinds}
    assert losses["auto"] == losses["ema"]
    assert losses["raw"] < losses["ema"]


def test_thinning_keeps_what_it_says(
    run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "runs/toy/checkpoints/step-mine.ckpt"
    overrides = (*TRAIN, "callbacks=thinning", "callbacks.thinning.every_n_train_steps=6")
    run_toy(*overrides, "trainer.max_steps=13", "checkpoint_interval=4")
    mine.write_text("a user's own")
    run_toy(*overrides, "checkpoint_interval=4")
    names = {path.name for path in mine.parent.iterdir()}
    kept = {"step-00000006.ckpt", "step-00000012.ckpt", "step-00000018.ckpt"}
    assert kept | {"last.ckpt", "previous.ckpt", mine.name} <= names
    assert len([name for name in names if name.startswith("best-")]) == 1
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if ".ckpt " in line)
    assert names <= listed.keys()
    assert listed["step-00000012.ckpt"].startswith("step 12: periodic checkpoint")
    assert listed["step-mine.ckpt"].startswith("not written by this run")


class _BrokenLoss:
    """Makes one term of the toy's loss infinite at one call of training."""

    def __init__(self, bad_call: int) -> None:
        from toy_family import ToyLoss

        self.inner = ToyLoss()
        self.likelihood = self.inner.likelihood
        self.calls = 0
        self.bad_call = bad_call

    def __call__(self, model: torch.nn.Module, batch: Mapping[str, Any]) -> Any:
        output = self.inner(model, batch)  # pyright: ignore[reportArgumentType]  # the toy's batch
        if model.training and torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.bad_call:
                output.terms["length"] = output.loss_sum * float("inf")
        return output


def broken_loss(bad_call: int) -> _BrokenLoss:
    return _BrokenLoss(bad_call)


def test_a_loss_that_is_not_finite_stops_with_its_place(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_family

    monkeypatch.setattr(toy_family, "broken_loss", broken_loss, raising=False)
    # The first call is the check of the slots; micro-batch 13 is the second one of step 7.
    overrides = (
        *TRAIN,
        "loss._target_=toy_family.broken_loss",
        "+loss.bad_call=15",
        "trainer.accumulate_grad_batches=2",
        "trainer.max_steps=10",
        "checkpoint_interval=1",
        "trainer.val_check_interval=null",
    )
    with pytest.raises(XLMError, match=r"step 7, batch 13: length = inf"):
        run_toy(*overrides)
    saved = torch.load(tmp_path / "runs/toy/non-finite-step-7-rank-0.pt", weights_only=True)
    assert saved["batch"]["target_ids"].shape[0] == 4
    assert saved["terms"]["length"] == float("inf")
    # Not even the regular checkpoint of the non-finite step was written.
    assert content(tmp_path)["global_step"] == 6


def test_metrics_are_written_whole(run_toy: Run, tmp_path: Path) -> None:
    run_toy("job_type=train")
    run = tmp_path / "runs" / "toy"
    assert json.loads((run / "metrics.json").read_text())
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]


def test_a_compiler_that_fails_ends_in_one_message(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    with (
        inductor.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(XLMError, match=r"^compile: .* toy_family.ToyModel .*C\+\+(.|\n)*compile=false"),
    ):
        run_toy(*TRAIN, "compile=true")
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("overrides", "listed"),
    [
        (("trainer.strategy=deepspeed",), "pip install -U deepspeed"),
        (("trainer.strategy=fsdp",), "requires a GPU accelerator"),
        (("trainer.strategy=no_such",), "You selected an invalid strategy name: `strategy='no_such'`"),
        (
            ("trainer.strategy={_target_: lightning.pytorch.strategies.DeepSpeedStrategy}",),
            "could not make .*pip install -U deepspeed",
        ),
    ],
    ids=["deepspeed", "fsdp", "unknown", "node"],
)
def test_a_strategy_that_cannot_run_here_is_reported_in_a_line(
    overrides: tuple[str, ...], listed: str, compose_toy: Compose, tmp_path: Path
) -> None:
    run = resolve(compose_toy(*TRAIN, *overrides))
    with pytest.raises(XLMError, match=rf"(?s)^trainer.*{listed}"):
        make_trainer(run, tmp_path)


def test_strategies_are_made_of_the_config(compose_toy: Compose, tmp_path: Path) -> None:
    """Lightning's own FSDP and DeepSpeed refuse a CPU or are not installed: see the test above."""
    nodes = {
        FSDP2: "+trainer/strategy=fsdp2",
        ModelParallelStrategy: (
            "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy, "
            "data_parallel_size: 2, tensor_parallel_size: 1}"
        ),
        DDPStrategy: "trainer.strategy=ddp",
    }
    for kind, override in nodes.items():
        trainer = make_trainer(resolve(compose_toy(*TRAIN, "trainer.devices=2", override)), tmp_path)
        assert type(trainer.strategy) is kind
        assert trainer.world_size == 2
    node = {"_target_": "lightning.pytorch.strategies.FSDPStrategy"}
    assert type(make(node, "trainer.strategy")) is FSDPStrategy


def test_a_loss_that_is_divided_before_gives_the_same_weights(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed keeps the gradients to itself, so the mean is taken of the loss; here of the same batches."""
    run_toy(*TRAIN, "job_name=after")
    monkeypatch.setattr(Harness, "_divides_early", property(lambda self: True))
    run_toy(*TRAIN, "job_name=before")
    after, before = (
        torch.load(tmp_path / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("after", "before")
    )
    torch.testing.assert_close(before["model.bias"], after["model.bias"])


@pytest.mark.parametrize(("window", "early"), [(None, False), (4, False), (4, True)])
def test_bucketing_does_not_weigh_tokens_by_the_length_of_their_batch(
    window: int | None, early: bool, run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of random rows divide by their own tokens, sorted ones by the mean of all batches so far."""
    import toy_family

    counts: list[float] = []
    loss = toy_family.ToyLoss.__call__

    def counted(self: Any, model: torch.nn.Module, batch: Any) -> Any:
        output = loss(self, model, batch)
        if model.training and torch.is_grad_enabled():
            counts.append(float(output.loss_count))
        return output

    monkeypatch.setattr(toy_family.ToyLoss, "__call__", counted)
    monkeypatch.setattr(Harness, "_divides_early", property(lambda self: early))
    sgd = ("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", "optimizer.lr=1e-4")
    train = (
        "job_type=train",
        "test_after_training=false",
        "lr_scheduler=constant",
        *sgd,
        "trainer.gradient_clip_val=null",
    )
    run_toy(*train, f"datamodule.train.lm.bucketing={'null' if window is None else window}")
    counts = counts[-20:]  # without the check of the slots
    assert len(counts) == 20
    assert len(set(counts)) > 3
    lengths = [sum(counts[: step + 1]) / (step + 1) for step in range(20)] if window else counts
    steps = sum(count / length for count, length in zip(counts, lengths, strict=True))
    # The gradient of one token's cross-entropy at equal probabilities; at this rate they stay equal.
    gradient = 1 / 6 - torch.nn.functional.one_hot(torch.tensor(3), 6).float()
    torch.testing.assert_close(
        content(tmp_path)["state_dict"]["model.bias"], -1e-4 * steps * gradient, rtol=3e-3, atol=0
    )


ORDINARY = {
    "shorter than the logging interval": ("trainer.max_steps=2",),
    "one logger": ("logger=csv",),
    "half precision": ("trainer.precision=bf16-mixed",),
    "one batch of each": ("+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1"),
    "all callbacks": ("callbacks=[ema,throughput,samples,gradient_norm,early_stopping]",),
    "accumulated": ("trainer.accumulate_grad_batches=2", "datamodule.train.lm.num_workers=1"),
}


@pytest.mark.parametrize("overrides", ORDINARY.values(), ids=ORDINARY)
def test_no_warning(run_toy: Run, overrides: tuple[str, ...]) -> None:
    run_toy("job_type=train", *overrides)
    run_toy("job_type=eval", *overrides)
