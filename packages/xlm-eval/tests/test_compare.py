"""Comparison of made-up runs, with means and intervals worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm.core.command import arguments, cli
from xlm.core.command.job import read_tool
from xlm.core.config.differences import differing, named
from xlm.core.config.errors import XLMError
from xlm.eval.comparison_text import BOUNDS, LENGTHS
from xlm.eval.finished_runs import read_runs
from xlm.eval.jobs import Compare


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6)):
        make_run(f"ilm_s{seed}", seed, {"accuracy": accuracy, "bound": 1.0, "nll": 2.0 + seed})
    make_run("arlm", 1, {"accuracy": 0.4, "bound": 0.0, "nll": 1.0}, model={"d_model": 64})
    make_run("other", 1, {"accuracy": 0.1, "bound": 0.0, "nll": 9.0}, task="lm1b")
    return tmp_path


def compare(*words: str) -> None:
    assert read_tool("compare", Compare, ["job_type=compare", *words]).run() == 0


def make_run(name: str, seed: int, metrics: dict[str, float], task: str = "star", **more: object) -> None:
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    config = {"job_name": name, "seed": seed, "task": {"name": task}, **more}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {
        "test/prediction/exact_match": metrics["accuracy"],
        "test/lm/nll": metrics["nll"],
        "test/lm/is_bound": metrics["bound"],
        "test/lm/models_length": 1.0,
        "val/lm/loss": 3.0,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_seeds_become_a_mean_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    compare("runs=[runs/ilm_s*,runs/arlm]")
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
    compare("runs=[runs/ilm_s1,runs/arlm]")
    text = capsys.readouterr().out
    assert "| lm/nll (upper bound, with length) | 3 | – |" in text
    assert "| lm/nll (exact, with length) | – | 1 |" in text


def test_each_task_has_its_own_table(capsys: pytest.CaptureFixture[str]) -> None:
    compare("runs=[runs/arlm,runs/other]")
    text = capsys.readouterr().out
    assert text.index("## star") < text.index("## lm1b")
    assert "| | other |" in text


def written() -> dict[str, Any]:
    """The only comparison, of the only task that the tests below make runs of."""
    [file] = Path("runs/compare").glob("*/comparison.json")
    return json.loads(file.read_text())["star"]


def evaluation(run: str, folder: str, accuracy: float, **config: Any) -> None:
    make_run(f"{run}/eval/{folder}", 1, {"accuracy": accuracy, "bound": 1.0, "nll": 2.0}, **config)


def test_settings_of_one_name_are_distinguished_by_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    for place, steps in (("a", 1), ("b", 4)):
        evaluation("mdlm", place, steps / 10, predictor={"sampler": {"num_steps": steps, "kind": "p"}})
    compare("runs=[runs/mdlm/eval/*]")
    found = written()["prediction/exact_match"]
    assert {name: value["mean"] for name, value in found.items()} == {
        "mdlm num_steps=1": 0.1,
        "mdlm num_steps=4": 0.4,
    }
    assert written()["settings"]["mdlm num_steps=4"] == {"predictor.sampler.num_steps": "4"}
    text = capsys.readouterr().out
    assert "| predictor.sampler.num_steps | 1 | 4 |" in text
    assert "| prediction/exact_match | 0.1 | 0.4 |" in text


def test_seeds_and_settings_of_one_sweep() -> None:
    for seed in (1, 2):
        for lr in (0.1, 0.2):
            metrics = {"accuracy": seed * lr, "bound": 1.0, "nll": 2.0}
            make_run(f"t_s{seed}_{lr}", seed, metrics, optimizer={"lr": lr})
    compare("runs=[runs/t_*]")
    found = written()["prediction/exact_match"]
    assert {name: sorted(value["values"].values()) for name, value in found.items()} == {
        "t_s* (2 seeds) lr=0.1": [0.1, 0.2],
        "t_s* (2 seeds) lr=0.2": [0.2, 0.4],
    }


def test_families_and_settings_together() -> None:
    """A key that only one family has distinguishes the settings of this family."""
    configs = [
        {"model._target_": "a.A", "predictor._target_": "a.P", "predictor.steps": 1, "lr": 1},
        {"model._target_": "a.A", "predictor._target_": "a.P", "predictor.steps": 4, "lr": 1},
        {"model._target_": "b.B", "predictor._target_": "b.P", "predictor.other": 4, "lr": 2},
    ]
    rows = differing(configs)
    assert rows == {"model": ["A", "A", "B"], "predictor.steps": ["1", "4", "–"], "lr": ["1", "1", "2"]}
    assert named(["x", "x", "x"], rows) == [
        "x model=A, steps=1, lr=1",
        "x model=A, steps=4, lr=1",
        "x model=B, steps=–, lr=2",
    ]
    assert named(["x", "x"], {"key": ["null", "null"]}) == ["x", "x #2"]


def test_callbacks_that_change_the_weights_make_a_setting() -> None:
    for seed, callback in ((4, "ema"), (5, "samples"), (6, "throughput")):
        metrics = {"accuracy": 0.5, "bound": 1.0, "nll": 2.0}
        make_run(f"w{seed}", seed, metrics, callbacks={callback: {"_target_": f"C.{callback}"}})
    compare("runs=[runs/w*]")
    assert set(written()["prediction/exact_match"]) == {"w4", "w* (2 seeds)"}


def test_evaluations_of_several_checkpoints_of_one_run() -> None:
    for step in (1, 2):
        evaluation("a", str(step), step / 10, ckpt_path=f"step-{step}.ckpt")
    compare("runs=[runs/a/eval/*]")
    found = written()["prediction/exact_match"]
    assert {name: value["mean"] for name, value in found.items()} == {
        "a ckpt_path=step-1.ckpt": 0.1,
        "a ckpt_path=step-2.ckpt": 0.2,
    }


def test_an_unfinished_run_in_a_pattern_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/ilm_s4").mkdir()
    Path("runs/ilm_s4/config.yaml").write_text("seed: 4")
    make_run("ilm_s5", 5, {"accuracy": 0.5, "bound": 1.0, "nll": 2.0})
    Path("runs/ilm_s5/versions.json").write_text('{"ended": null}')
    compare("runs=[runs/ilm_*]")
    text = capsys.readouterr().out
    assert "runs/ilm_s4 is skipped: no metrics.json" in text
    assert "runs/ilm_s5 is skipped: no end in its versions.json" in text
    assert set(written()["prediction/exact_match"]) == {"ilm_s* (3 seeds)"}


def test_losses_of_unlike_families_and_settings_stand_in_rows_of_their_own() -> None:
    def run(name: str, **loss: object) -> None:
        make_run(name, 1, {"accuracy": 0.5, "bound": 1.0, "nll": 2.0}, loss=loss, datamodule=LOADERS)
        path = Path("runs", name, "metrics.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "test/lm/loss": 1, "test/lm/term": 2}))

    LOADERS = {"test": {"lm": {"uses": ["loss"]}, "prediction": {"uses": ["generation"]}}}
    run("l1", _target_="a.Loss", weight="one")
    run("l2", _target_="a.Loss", weight="two")
    run("l3", _target_="b.Loss")
    compare("runs=[runs/l1,runs/l2,runs/l3]")
    kinds = ("a.Loss, weight=one", "a.Loss, weight=two", "b.Loss")
    for metric in ("lm/loss", "lm/term"):
        for kind, name in zip(kinds, ("l1", "l2", "l3"), strict=True):
            assert set(written()[f"{metric} ({kind})"]) == {name}
    assert set(written()["prediction/exact_match"]) == {"l1", "l2", "l3"}


def test_unlike_likelihoods_come_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    compare("runs=[runs/ilm_s1,runs/arlm]")
    text = capsys.readouterr().out
    assert BOUNDS in text
    assert LENGTHS not in text
    make_run("marked", 1, {"accuracy": 0.5, "bound": 1.0, "nll": 2.0}, model={"d_model": 1})
    path = Path("runs/marked/metrics.json")
    path.write_text(path.read_text().replace('models_length": 1.0', 'models_length": 0.0'))
    compare("runs=[runs/ilm_s1,runs/marked]")
    text = capsys.readouterr().out
    assert LENGTHS in text
    assert BOUNDS not in text


def test_the_home_folder_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    for pattern in ("~/runs/arlm", "~/runs/arl*"):
        runs, _ = read_runs([pattern])
        assert [run.folder for run in runs] == [here / "runs" / "arlm"]


def test_no_torch_is_imported() -> None:
    check = "import sys, xlm.eval.compare, xlm.eval.viewing.job; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "xlm.core", "job_type=compare", "runs=[runs/ilm_s*]"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""
    process.wait()


MISTAKES = {
    "runs: missing": [],
    "there is no folder runs/nope": ["runs=[runs/nope*]"],
    "empty has no config.yaml": ["runs=[empty]"],
    "nothing in .* has results": ["runs=[empt*]"],
    "damaged/metrics.json cannot be read": ["runs=[damaged]"],
    "foreign/config.yaml is not a record of a run": ["runs=[foreign]"],
    "have the same seed": ["runs=[runs/ilm_s1,runs/ilm_again]"],
    "seed: job_type=compare has only": ["runs=[runs/arlm]", "seed=1"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_reported(message: str, here: Path) -> None:
    (here / "empty").mkdir()
    for name, metrics in (("damaged", '{"test/'), ("foreign", "{}")):
        (here / name).mkdir()
        (here / name / "config.yaml").write_text(
            "seed: 1\ntask: {name: x}\n" if name == "damaged" else "a: 1"
        )
        (here / name / "metrics.json").write_text(metrics)
    make_run("ilm_again", 1, {"accuracy": 0.5, "bound": 1.0, "nll": 2.0})
    with pytest.raises(XLMError, match=message):
        compare(*MISTAKES[message])
    assert not (here / "runs" / "compare").exists()


def test_the_command_line_knows_it() -> None:
    text = cli.help_text()
    assert "compare" in text
    assert max(map(len, text.splitlines())) <= 100
    arguments.check_arguments(["job_type=compare"])
