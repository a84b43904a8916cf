"""An object that does not fit its slot ends in a message that names slot, key, class and what is missing."""

from typing import Any

import pytest
import torch

from xlm.core.config.errors import XLMError
from xlm.core.training.assembly import assemble
from xlm.core.training.run import resolve
from xlm.core.training.slot_checks import check_slots

from .conftest import Compose, Run

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
