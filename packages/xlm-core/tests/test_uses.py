"""Every combination of what a loader may be used for, in every job that runs loaders."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from xlm.core.config.errors import XLMError

from . import toy_jobs
from .conftest import Run

USES = [
    list(uses) for number in (1, 2, 3) for uses in combinations(("loss", "likelihood", "generation"), number)
]
ONE_STEP = ("trainer.max_steps=1", "trainer.log_every_n_steps=1")
FIGURE = {"loss": "loss", "likelihood": "nll", "generation": "exact_match"}


def figures(results: dict[str, float]) -> set[str]:
    return {name.removeprefix("test/lm/") for name in results if name.startswith("test/lm/")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run has been trained."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_jobs.HERE))
        toy_jobs.run(root, "job_type=train", "test_after_training=false", *ONE_STEP)
    return root


@pytest.mark.parametrize("uses", USES, ids="+".join)
def test_each_job_does_what_the_loader_is_used_for(root: Path, uses: list[str]) -> None:
    loader = (f"datamodule.test.lm.uses={json.dumps(uses)}", "~datamodule.test.prediction")
    wanted = {FIGURE[use] for use in uses}
    found = figures(toy_jobs.run(root, "job_type=eval", *loader))
    assert wanted <= found
    assert not found & (set(FIGURE.values()) - wanted)
    scored = max((root / "runs/toy/eval").iterdir())
    assert num_records(scored) == (20 if "generation" in uses else 0)
    if "generation" in uses:
        generated = figures(toy_jobs.run(root, "job_type=generate", *loader))
        assert generated == {"exact_match", "length", "nfe_per_sequence"}
        assert num_records(max((root / "runs/toy/generate").iterdir())) == 20
    else:
        with pytest.raises(XLMError, match=r"job_type=generate needs a loader with `uses: \[generation\]`"):
            toy_jobs.run(root, "job_type=generate", *loader)


def test_training_ends_with_every_use_of_a_loader(run_toy: Run, tmp_path: Path) -> None:
    uses = ("datamodule.test.lm.uses=[generation,likelihood,loss]", "~datamodule.test.prediction")
    assert set(FIGURE.values()) <= figures(run_toy("job_type=train", *uses, *ONE_STEP))
    assert num_records(tmp_path / "runs/toy") == 20


def num_records(folder: Path) -> int:
    return len((folder / "predictions.jsonl").read_text().splitlines())


@pytest.mark.parametrize("job", ["train", "eval"])
def test_no_loader_at_all_is_named_before_anything_runs(run_toy: Run, tmp_path: Path, job: str) -> None:
    nothing = ("~datamodule.test.prediction", "~datamodule.test.lm")
    with pytest.raises(XLMError, match=r"datamodule\.test: has no loader"):
        run_toy(f"job_type={job}", *nothing)
    assert not (tmp_path / "runs").exists()


def test_training_without_a_test_needs_no_loader_of_it(run_toy: Run, tmp_path: Path) -> None:
    nothing = ("~datamodule.test.prediction", "~datamodule.test.lm", "test_after_training=false")
    assert "val/lm/nll" in run_toy("job_type=train", *nothing)
