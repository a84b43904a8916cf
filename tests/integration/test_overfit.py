"""``debug=overfit``: a small network learns eight rows by heart and generates their targets."""

import math
from pathlib import Path

import pytest

from .running import composed

STEPS = {"arlm": 60, "mlm": 100, "mdlm": 100, "ilm": 320, "flexmdm": 450}
FLOORS = {"ilm": math.log(math.factorial(4)) / 5}
"""Where the order is free: N of 0..4 tokens are dropped, and each of the N is as right as the others."""

RIGHT = {"flexmdm": 0.6}
"""Of the eight targets. The number of insertions is drawn, so one or two can miss: with 512 sampling steps,
all or six of eight came back, by the instruction set. The loss, below, says whether the rows were learnt."""
MOST_NATS = {"flexmdm": 0.12}
"""For each token; a network that knows nothing has more than 2."""


@pytest.mark.parametrize("family", STEPS)
def test_a_family_gives_back_what_it_learnt_by_heart(family: str, tmp_path: Path) -> None:
    from xlm.core.command import jobs

    config, settings = composed(
        f"star_tiny_{family}",
        "job_type=train",
        "job_name=overfit",
        "debug=overfit",
        f"output_dir={tmp_path}",
        f"datamodule.cache_dir={tmp_path / 'cache'}",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        f"trainer.max_steps={STEPS[family]}",
        "callbacks.progress=null",
        "task.source.num_rows={train: 16, val: 16, test: 16}",
        "model.d_model=64",
        "model.num_layers=2",
        "model.num_heads=2",
        "optimizer.lr=3e-3",
        # Down to 0: at a constant rate answers come and go, at steps that depend on the processor.
        "lr_scheduler.name=linear",
        "test_after_training=false",
    )
    results = jobs.run(config, settings)
    assert results["val/prediction/exact_match"] >= RIGHT.get(family, 0.9)
    if family in MOST_NATS:
        assert results["val/lm/loss"] <= MOST_NATS[family]
    if family in FLOORS:
        assert results["val/lm/loss"] == pytest.approx(FLOORS[family], abs=0.12)
