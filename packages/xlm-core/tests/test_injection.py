"""Each slot is filled from the command line by a class in a file of the user's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xlm.core.config.errors import XLMError

from .conftest import Run

MY_FILE = """
import torch
from toy_family import ToyCollator, ToyExactMatch, ToyLoss, ToyModel, ToyPredictor

used = set()

def tell(name, value):
    used.add(name)
    return value

class MyLoss(ToyLoss):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight
    def __call__(self, model, batch):
        return tell(f"loss {self.weight}", super().__call__(model, batch))

class MyPredictor(ToyPredictor):
    def __call__(self, model, batch, seeds, *, trace=False):
        return tell("predictor", super().__call__(model, batch, seeds, trace=trace))

class MyCollator(ToyCollator):
    def __call__(self, examples):
        return tell("collator", super().__call__(examples))

class MyModel(ToyModel):
    def forward(self, ids):
        return tell("model", super().forward(ids))

class MyMetric(ToyExactMatch):
    def compute(self):
        return tell("metric", {"mine": 1.5})

class MySGD(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
    def step(self, closure=None):
        return tell("optimizer", super().step(closure))
"""
INJECTIONS = {
    "loss": ("loss._target_=my_file.MyLoss",),
    "loss with an argument": ("loss._target_=my_file.MyLoss", "+loss.weight=2.0"),
    "predictor": ("predictor._target_=my_file.MyPredictor",),
    "collator": ("datamodule.train.lm.collator._target_=my_file.MyCollator",),
    "model": ("model._target_=my_file.MyModel",),
    "metric": ("+task.metrics.mine={_target_: my_file.MyMetric}",),
    "optimizer": (
        "optimizer._target_=my_file.MySGD",
        "~optimizer.betas",
        "~optimizer.eps",
        "~optimizer.weight_decay",
    ),
    "whole node": ("~predictor", "+predictor={_target_: my_file.MyPredictor}"),
}


USED = {"loss": "loss 1.0", "loss with an argument": "loss 2.0", "whole node": "predictor"}


@pytest.fixture(autouse=True)
def my_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of the user's own; the command line has the working directory on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_file.py").write_text(MY_FILE)
    sys.modules.pop("my_file", None)
    yield tmp_path / "my_file.py"
    sys.modules.pop("my_file", None)


@pytest.mark.parametrize("slot", INJECTIONS)
def test_a_class_of_the_users_own_fills_a_slot(slot: str, run_toy: Run) -> None:
    results = run_toy(
        "job_type=train",
        "trainer.log_every_n_steps=1",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        *INJECTIONS[slot],
    )
    used: set[str] = sys.modules["my_file"].used
    assert used == {USED.get(slot, slot)}
    assert (results.get("test/prediction/mine") == 1.5) == (slot == "metric")


MISTAKES: dict[tuple[str, ...], str] = {
    (
        "loss._target_=my_fil.MyLoss",
    ): r"loss: could not make my_fil\.MyLoss\.\n  there is no module my_fil \(",
    (
        "loss._target_=my_file.MyLos",
    ): r"there is no MyLos in my_file \(.*my_file\.py\)\. Did you mean MyLoss\?",
    ("loss._target_=my_file.MyLoss", "+loss.wait=2"): (
        r"my_file\.MyLoss takes weight, not wait\. Did you mean weight\?\n"
        r"  Drop the arguments of the previous class: '~loss\.wait'\n"
        r"  or replace the whole node: '~loss' '\+loss=\{_target_: my_file\.MyLoss\}'"
    ),
    ("optimizer._target_=my_file.MySGD",): "takes params, lr, not betas, eps, weight_decay",
    ("loss._target_=my_broken.MyLoss",): "my_broken cannot be imported: ZeroDivisionError",
    ("loss._target_=my_needy.MyLoss",): "my_needy cannot be imported: No module named 'nothing_like_this'",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_reported_in_the_words_of_the_command_line(
    overrides: tuple[str, ...], my_file: Path, run_toy: Run
) -> None:
    (my_file.parent / "my_broken.py").write_text("1 / 0")
    (my_file.parent / "my_needy.py").write_text("import nothing_like_this")
    with pytest.raises(XLMError, match=MISTAKES[overrides]):
        run_toy("job_type=train", *overrides)
