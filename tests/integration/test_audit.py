"""The job ``audit`` finds nothing in the families, and finds mistakes in their slots."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from xlm.core.config.errors import XLMError
from xlm.core.evaluation.slots import Slots
from xlm.core.training.assembly import make_slots
from xlm.core.training.run import Run, resolve
from xlm.eval.auditing import claims, slots
from xlm.eval.auditing.slots import Effort, audit_slots
from xlm.eval.jobs import Audit

from .running import FAMILIES, composed, run_fast

SMALL = ("model.trunk.d_model=16", "model.trunk.num_layers=1", "model.trunk.num_heads=2")
OWN = {
    "did": ["model.reads_time=true"],
    "flexmdm": ["predictor.num_steps=8"],
    "ilm": ["predictor.stop=draw"],
    "udlm": ["predictor.sampler.num_steps=8"],
}
PUBLISHED_WEIGHTS = {
    # The recipe of flexmdm gives late times little weight, which are most of its likelihood: 2.62 nats.
    "flexmdm": (
        "datamodule.train.lm.collator.unmasking_weight=hazard",
        "datamodule.train.lm.collator.time_power=2.0",
    )
}
"""Settings with which a few hundred steps learn the likelihood."""
QUICK = Effort(num_draws=60, num_samples=1000, learn_steps=0, tolerance=0.2)


def small_run(family: str, folder: Path, *overrides: str) -> Run:
    names = ("job_type=audit", "job_name=x", f"output_dir={folder}", "predictor.temperature=1.0")
    config = composed(f"star_tiny_{family}", *names, *SMALL, *OWN.get(family, []), *overrides)
    return resolve(Audit(num_tokens=2, max_length=2).choose_config(config), own_keys=Audit.model_fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_found_in_a_family(family: str, tmp_path: Path) -> None:
    report = audit_slots(small_run(family, tmp_path), max_length=2, lengths=[2], effort=QUICK)
    assert not report.mistakes, report.markdown()
    assert [check.claim for check in report.checks if check.holds is None] == [slots.LEARNT]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_the_truth(family: str, tmp_path: Path) -> None:
    effort = replace(QUICK, num_draws=200, learn_steps=400, tolerance=0.3)
    run = small_run(family, tmp_path, *PUBLISHED_WEIGHTS.get(family, ()))
    report = audit_slots(run, max_length=2, lengths=[2], effort=effort)
    assert all(check.holds for check in report.checks), report.markdown()


@dataclass
class Altered:
    """A loss with another one's results, changed."""

    loss: Any
    scale: float = 1.0
    divides: bool = False

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        output = self.loss(model, batch)
        if not self.divides:
            return output
        mean: Tensor = output.loss_sum / output.loss_count
        terms: Mapping[str, Tensor] = {"mean": mean}
        return replace(output, loss_sum=mean, terms=terms)

    def likelihood(self, model: nn.Module, batch: Any) -> Any:
        likelihood = self.loss.likelihood(model, batch)
        return replace(likelihood, nll=self.scale * likelihood.nll)


def with_mistake(**altered: Any) -> Callable[[Run], Slots]:
    def make(run: Run) -> Slots:
        made = make_slots(run)
        return replace(made, loss=Altered(made.loss, **altered))

    return make


@pytest.mark.parametrize(
    ("claim", "altered"), [(claims.BOUND, {"scale": 0.5}), (slots.ADDITION, {"divides": True})]
)
def test_a_mistake_in_a_slot_is_found(
    claim: str, altered: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "make_slots", with_mistake(**altered))
    report = audit_slots(small_run("mdlm", tmp_path), max_length=2, lengths=[2], effort=QUICK)
    assert {check.claim.partition(" (")[0] for check in report.mistakes} == {claim}


def test_the_job_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("++num_tokens=2", "++max_length=2", "++num_draws=20", "++num_samples=200", "++learn_steps=2")
    metrics = run_fast(
        tmp_path, tmp_path / "cache", "audit", "star_tiny_arlm", *SMALL, *own, "++tolerance=9.0"
    )
    assert metrics["audit/mistakes"] == 0
    [folder] = (tmp_path / "fast" / "audit").iterdir()
    checks = json.loads((folder / "audit.json").read_text())["checks"]
    assert len(checks) == metrics["audit/checks"] == len((folder / "audit.md").read_text().splitlines()) - 4
    with pytest.raises(XLMError, match=r"lengths: got \[3\], above max_length=2"):
        run_fast(tmp_path, tmp_path / "cache", "audit", "star_tiny_arlm", *SMALL, *own, "++lengths=[3]")
    monkeypatch.setattr(slots, "make_slots", with_mistake(scale=0.1))
    with pytest.raises(XLMError, match="audit: wrong: the loss is an upper bound"):
        run_fast(tmp_path, tmp_path / "cache", "audit", "star_tiny_arlm", *SMALL, *own)
