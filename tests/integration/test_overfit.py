"""``debug=overfit``: a small network memorises eight rows and generates their targets."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from .running import composed

STEPS = {
    "arlm": 60,
    "mlm": 100,
    "mdlm": 100,
    "bd3lm": 100,
    "ilm": 240,
    "did": 150,
    "editflow": 200,
    "flexmdm": 640,
    "udlm": 200,
}
FLOORS = {"ilm": math.log(math.factorial(4)) / 5}
"""Where the order is free: N of 0..4 tokens are dropped, and each of the N is as right as the others."""

DRAWS = {"editflow": 16, "flexmdm": 16}
"""Generations of each row, of which the most frequent counts: how much is inserted is drawn at random, so one
in ten misses, whatever was learnt; with one generation of each row that would be one or two of the eight."""
MOST_NATS = {"flexmdm": 0.12}
"""Nats per token; an untrained network has more than 2."""


LONG = ("did", "editflow", "flexmdm", "ilm", "udlm")
"""Each takes seven seconds and more; by default their packages' own tests show that they learn."""
FAMILIES = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in STEPS]


def overrides(family: str, folder: Path, steps: int) -> tuple[str, ...]:
    return (
        "debug=overfit",
        "job_name=overfit",
        f"output_dir={folder}",
        f"datamodule.cache_dir={folder / 'cache'}",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "datamodule.batch_size=64",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps}",  # once, when all is learnt
        "callbacks.progress=null",
        "task.source.num_rows={train: 16, val: 16, test: 16}",
        "model.trunk.d_model=64",
        "model.trunk.num_layers=2",
        "model.trunk.num_heads=2",
        "optimizer.lr=3e-3",
        # Down to 0: at a constant rate answers come and go, at steps that depend on the processor.
        "lr_scheduler.name=linear",
        "test_after_training=false",
    )


def train(family: str, given: tuple[str, ...]) -> dict[str, float]:
    from xlm.core.command.compose import run_job

    return run_job(composed(f"star_tiny_{family}", "job_type=train", *given))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_back_what_it_learnt_by_heart(family: str, tmp_path: Path) -> None:
    given = overrides(family, tmp_path, STEPS[family])
    results = train(family, given)
    if family in DRAWS:
        share = share_of_frequent_answers(f"star_tiny_{family}", given, DRAWS[family])
    else:
        share = results["val/prediction/exact_match"]
    assert share >= 0.9
    if family in MOST_NATS:
        assert results["val/lm/loss"] <= MOST_NATS[family]
    if family in FLOORS:
        assert results["val/lm/loss"] == pytest.approx(FLOORS[family], abs=0.12)


@pytest.mark.slow
def test_flexmdm_learns_most_of_it_in_a_quarter_of_the_steps(tmp_path: Path) -> None:
    """What `nox -s slow` trains to the end; a network that knows nothing has more than 2 nats."""
    results = train("flexmdm", overrides("flexmdm", tmp_path, STEPS["flexmdm"] // 4))
    assert results["val/lm/loss"] <= 1.0


def share_of_frequent_answers(experiment: str, given: tuple[str, ...], draws: int) -> float:
    """The share of rows whose most frequent generation, of several with other seeds, is their target."""
    from xlm.core.hub import source
    from xlm.core.saving.run_folder import RunFolder
    from xlm.core.training.assembly import assemble
    from xlm.core.training.run import resolve

    run = resolve(composed(experiment, "job_type=eval", *given))
    harness, datamodule = assemble(run)
    last = RunFolder(run.folder).last_checkpoint().header
    assert last is not None
    source.load(harness.model, str(last.path))
    rows = datamodule.first_examples("test", "prediction", 8)
    batch = datamodule.collate("test", "prediction")([row for row in rows for _ in range(draws)]).batch
    predicted = harness.slots.predictor(harness.model.eval(), batch, torch.arange(len(rows) * draws))
    answers = [
        tuple(ids[:length])
        for ids, length in zip(predicted.ids.tolist(), predicted.lengths.tolist(), strict=True)
    ]
    frequent = [Counter(answers[i : i + draws]).most_common(1)[0][0] for i in range(0, len(answers), draws)]
    targets = [tuple(row["target_ids"].tolist()) for row in rows if "target_ids" in row]
    return sum(answer == target for answer, target in zip(frequent, targets, strict=True)) / len(rows)
