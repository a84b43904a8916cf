"""Comparison of made-up runs, with means and intervals worked out by hand."""

import json
from pathlib import Path

import pytest
import yaml

from xlm.core import cli, compare
from xlm.core.errors import XLMError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6)):
        make_run(f"ilm_s{seed}", seed, {"accuracy": accuracy, "bound": 1.0, "nll": 2.0 + seed})
    make_run("arlm", 1, {"accuracy": 0.4, "bound": 0.0, "nll": 1.0}, model={"d_model": 64})
    make_run("other", 1, {"accuracy": 0.1, "bound": 0.0, "nll": 9.0}, task="lm1b")
    return tmp_path


def make_run(name: str, seed: int, figures: dict[str, float], task: str = "star", **more: object) -> None:
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    config = {"job_name": name, "seed": seed, "task": {"name": task}, **more}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {
        "test/prediction/exact_match": figures["accuracy"],
        "test/lm/nll": figures["nll"],
        "test/lm/is_bound": figures["bound"],
        "test/lm/models_length": 1.0,
        "val/lm/loss": 3.0,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_seeds_become_a_mean_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    compare.main(["job_type=compare", "runs=[runs/ilm_s*,runs/arlm]"])
    [written] = Path("runs/compare").glob("*/comparison.json")
    table = json.loads(written.read_text())["star"]
    found = table["prediction/exact_match"]["ilm_s* (3 seeds)"]
    assert found["mean"] == pytest.approx(0.6)
    # standard deviation 0.1, so 4.303 * 0.1 / sqrt(3)
    assert found["half_width_95"] == pytest.approx(0.24844, abs=1e-4)
    assert found["values"] == {"runs/ilm_s1": 0.5, "runs/ilm_s2": 0.7, "runs/ilm_s3": 0.6}
    assert table["prediction/exact_match"]["arlm"]["half_width_95"] is None
    text = capsys.readouterr().out
    assert "| prediction/exact_match | 0.6 ± 0.25 | 0.4 |" in text
    assert text.startswith(written.with_suffix(".md").read_text())


def test_bounds_and_exact_values_stand_in_different_rows(capsys: pytest.CaptureFixture[str]) -> None:
    compare.main(["job_type=compare", "runs=[runs/ilm_s1,runs/arlm]"])
    text = capsys.readouterr().out
    assert "| lm/nll (upper bound, with length) | 3 | – |" in text
    assert "| lm/nll (exact, with length) | – | 1 |" in text


def test_each_task_has_its_own_table(capsys: pytest.CaptureFixture[str]) -> None:
    compare.main(["job_type=compare", "runs=[runs/arlm,runs/other]"])
    text = capsys.readouterr().out
    assert text.index("## star") < text.index("## lm1b")
    assert "| | other |" in text


MISTAKES = {
    "runs: missing": [],
    "no folder is called runs/nope": ["runs=[runs/nope*]"],
    "has no metrics.json": ["runs=[empty]"],
    "have the same seed": ["runs=[runs/ilm_s1,runs/ilm_again]"],
    "seed: job_type=compare knows": ["runs=[runs/arlm]", "seed=1"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_told(message: str, here: Path) -> None:
    (here / "empty").mkdir()
    make_run("ilm_again", 1, {"accuracy": 0.5, "bound": 1.0, "nll": 2.0})
    with pytest.raises(XLMError, match=message):
        compare.main(["job_type=compare", *MISTAKES[message]])
    assert not (here / "runs" / "compare").exists()


def test_the_command_line_knows_it() -> None:
    assert "compare" in cli.help_text()
    cli.check_arguments(["job_type=compare"])
