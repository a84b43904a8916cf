"""Ordinary jobs print no warning of Lightning's: warnings are errors in these tests."""

import pytest

from .conftest import Run

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
