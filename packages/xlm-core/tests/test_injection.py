"""A class in a file of the user fills a slot; one that does not fit ends in a message that names it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.core.config.errors import XLMError
from xlm.core.training.assembly import assemble
from xlm.core.training.run import resolve
from xlm.core.training.slot_checks import check_slots

from .conftest import Compose, Run

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


MISFITS = {
    "loss={_target_: toy_family.NoLoss}": "loss: could not make toy_family.NoLoss",
    "+model.size=3": "model: could not make toy_family.ToyModel",
    "loss={_target_: toy_family.ToyTokenizer}": "slot Loss .config key `loss`. .*ToyTokenizer.* no __call__",
    "predictor={_target_: toy_family.ToyLoss}": "slot Predictor .*cannot be called as",
    "loss={_target_: misfits.FloatLoss}": "loss_sum is 1.0, not a scalar tensor",
    "loss={_target_: misfits.FloatTerm}": r"terms\['token'\] is 1.0, not a scalar tensor",
    "loss={_target_: misfits.TensorLoss}": "its output Tensor has no loss_sum, loss_count, terms",
    "loss={_target_: misfits.NanLoss}": "loss_sum is nan on the first rows",
    "loss={_target_: misfits.DetachedLoss}": "slot Loss .*does not require grad",
    "loss={_target_: misfits.NoLikelihood}": "no likelihood.model, batch., which `datamodule.val.lm.uses`",
    "predictor={_target_: misfits.BrokenPredictor}": "prediction.uses: the predictor reads .positions., ",
    "task.metrics.exact={_target_: toy_family.ToyLoss}": "slot Metric .*has no sums, reset, update, compute",
    "task.tokenizer={_target_: toy_family.ToyLoss}": "slot Tokenizer .*has no encode",
    "datamodule.train.lm.collator={_target_: misfits.BrokenCollator}": "train.lm.collator.*IndexError",
}


@pytest.mark.parametrize(("override", "message"), MISFITS.items())
def test_a_misfit_is_named_before_training(override: str, message: str, run_toy: Run) -> None:
    with pytest.raises(XLMError, match=f"(?s){message}"):
        run_toy("job_type=train", override)


def test_a_fitting_family_passes_and_is_left_as_it_was(compose_toy: Compose) -> None:
    harness, datamodule = assemble(resolve(compose_toy("job_type=train")))
    before: dict[str, Any] = {name: value.clone() for name, value in harness.model.state_dict().items()}
    random_state = torch.get_rng_state()
    check_slots(harness, datamodule)
    assert all(torch.equal(value, before[name]) for name, value in harness.model.state_dict().items())
    assert all(parameter.grad is None for parameter in harness.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_long_predictor_is_not_run_to_its_end(run_toy: Run) -> None:
    from misfits import EndlessPredictor

    with pytest.raises(TimeoutError):
        run_toy("job_type=train", "predictor={_target_: misfits.EndlessPredictor}")
    # val and test ask for it, each is stopped at its fourth evaluation
    assert EndlessPredictor.evaluations_in_the_check == 8
