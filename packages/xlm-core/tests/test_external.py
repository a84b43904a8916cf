"""Packages of others: found by their metadata; a broken one stops no run that does not use it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xlm.core.command import arguments, cli, doctor
from xlm.core.command.compose import check
from xlm.core.command.discovery import config_packages, providers
from xlm.core.command.job import load_job
from xlm.core.config.entry_points import offered
from xlm.core.config.errors import XLMError

from .conftest import HERE, Compose, Run

Install = Callable[..., Path]


def forget() -> None:
    config_packages.cache_clear()
    offered.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path, as installing it would: metadata, a module, configs."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(
        name: str,
        code: str = "",
        configs: dict[str, str] | None = None,
        jobs: dict[str, str] | None = None,
        results: dict[str, str] | None = None,
        pages: dict[str, str] | None = None,
    ) -> Path:
        module = name.replace("-", "_")
        metadata = site / f"{module}-0.1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        groups = {
            "configs": {module: f"{module}.configs"},
            "jobs": jobs or {},
            "results": results or {},
            "pages": pages or {},
        }
        lines = [
            line
            for group, points in groups.items()
            for line in (f"[xlm.{group}]", *(f"{point} = {target}" for point, target in points.items()))
        ]
        (metadata / "entry_points.txt").write_text("\n".join([*lines, ""]))
        (site / module).mkdir()
        (site / module / "__init__.py").write_text(code)
        for path, text in (configs or {}).items():
            file = site / module / "configs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        forget()
        return site / module

    yield install
    forget()


BROKEN: dict[str, tuple[str, dict[str, str] | None]] = {
    "raises": ("raise RuntimeError('no')", {"experiment/theirs.yaml": "# @package _global_\nseed: 7\n"}),
    "bad YAML": ("", {"experiment/theirs.yaml": "a: [1, 2\n"}),
    "no folder": ("", None),
    "clash": ("", {"debug/fast.yaml": "# @package _global_\nseed: 7\n"}),
}


def test_an_external_package_is_found_and_named(install: Install, compose_toy: Compose) -> None:
    install(
        "their-model",
        configs={"model_type/theirs.yaml": "# @package _global_\n", "task/odd.yaml": "name: odd\n"},
    )
    assert [package.distribution for package in providers("model_type")["theirs"]] == ["their-model"]
    lines = cli.help_text().splitlines()
    assert ["their-model", "theirs"] in [line.split() for line in lines]
    assert ["their-model", "odd"] in [line.split() for line in lines]
    assert compose_toy("job_type=train", "model_type=theirs").seed == 42


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_package_stops_no_run_that_does_not_use_it(
    how: str, install: Install, compose_toy: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    install("their-model", *BROKEN[how])
    assert compose_toy("job_type=train").task.name == "toy"
    assert "experiment" in cli.help_text()
    assert doctor.main() == 1
    assert "their-model" in capsys.readouterr().out.partition("problems")[2]


def test_what_is_wrong_is_said_when_it_is_used(install: Install, compose_toy: Compose) -> None:
    install("their-model", *BROKEN["bad YAML"])
    with pytest.raises(Exception, match=r"(?s)theirs\.yaml"):
        compose_toy("experiment=theirs")
    install("lost-model", *BROKEN["no folder"])
    with pytest.raises(
        XLMError, match=r"lost-model declares configs in lost_model\.configs, which does not exist"
    ):
        arguments.check_arguments(["experiment=lost_one"])


JOBS = '''"""Jobs of somebody else."""

from typing import Annotated

from pydantic import Field

from xlm.core.command.job import Job, Tool


class Survey(Job):
    """Quality against what it costs, over a grid.

    Each point is an evaluation.
    """

    sweep: dict[str, list[Annotated[int, Field(ge=1)]]]
    repeats: int = 1

    def run(self, run):
        import torch

        weights = torch.tensor([float(run.settings.model["vocab_size"])])
        steps = {f"steps_{n}": float(n * self.repeats) for n in self.sweep["steps"]}
        return {"vocab_size": weights.item(), **steps, "recorded": float(run.record["sweep"] == self.sweep)}


class Browse(Tool):
    """Look at runs."""

    runs: list[str]

    def run(self):
        print("looking at", *self.runs)
        return 3
'''
NAMES = {"survey": "their_jobs.theirs:Survey", "browse": "their_jobs.theirs:Browse"}


@pytest.fixture
def their_jobs(install: Install, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (install("their-jobs", "", {"x/y.yaml": ""}, NAMES) / "theirs.py").write_text(JOBS)
    yield
    for module in ("their_jobs", "their_jobs.theirs"):
        sys.modules.pop(module, None)


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """What ``xlm`` ends with: its message or its exit code; None where it comes to its end."""
    monkeypatch.setattr(sys, "argv", ["xlm", *words])
    GlobalHydra.instance().clear()
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code
    return None


@pytest.mark.usefixtures("their_jobs")
def test_a_job_of_somebody_else_is_listed_and_not_imported() -> None:
    lines = [line.split(maxsplit=2) for line in cli.help_text().splitlines()]
    assert ["survey", "their-jobs", "Quality against what it costs, over a grid"] in lines
    assert ["browse", "their-jobs", "Look at runs"] in lines
    assert cli.complete("job_type=sur") == ["job_type=survey"]
    with pytest.raises(XLMError, match=r"no such job\. Did you mean survey"):
        arguments.check_arguments(["job_type=survay"])
    assert "their_jobs" not in sys.modules


@pytest.mark.usefixtures("their_jobs")
def test_a_job_of_somebody_else_runs_on_a_run(run_toy: Run, compose_toy: Compose) -> None:
    metrics = run_toy("job_type=survey", "++sweep={steps: [2, 8]}", "++repeats=3")
    assert (metrics["steps_2"], metrics["steps_8"]) == (6.0, 24.0)
    assert metrics["recorded"] == 1.0
    for override, message in {
        "++sweep={steps: [0]}": "sweep.steps.0: got 0. Input should be greater than or equal to 1",
        "seed=3": "sweep: missing",
        "++sweap={steps: [1]}": "missing",
    }.items():
        with pytest.raises(XLMError, match=message):
            check(compose_toy("job_type=survey", override))
    with pytest.raises(XLMError, match="sweep: unknown key"):
        check(compose_toy("job_type=train", "++sweep={steps: [2]}"))


@pytest.mark.usefixtures("their_jobs")
def test_the_command_line_takes_the_keys_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--config-dir", str(HERE / "toy_configs"), "job_type=survey", "job_name=x", "experiment=toy")
    assert command_line(monkeypatch, *words, "sweep={steps: [2]}", "sweep.more=[3]", "repeats=2") is None
    assert command_line(monkeypatch, *words, "sweep={steps: [no]}") == (
        "Error: The config is not valid:\n  sweep.steps.0: got 'no'. Input should be a valid integer."
    )
    assert command_line(monkeypatch, "job_type=browse", "runs=[runs/a*,b]") == 3
    assert "looking at runs/a* b" in capsys.readouterr().out
    for words, message in {
        ("runs=[a]", "speed=2"): "Error: speed: job_type=browse has only runs=VALUE.",
        (): "Error: The config is not valid:\n  runs: missing. Set it: runs=VALUE.",
    }.items():
        assert command_line(monkeypatch, "job_type=browse", *words) == message


def test_a_broken_job_is_said_when_it_is_used(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("a-package", "raise RuntimeError('no')", {"x/y.yaml": ""}, {"theirs": "a_package:Theirs"})
    assert "theirs" in cli.help_text()
    with pytest.raises(
        XLMError, match="a_package:Theirs of a-package, which cannot be imported: RuntimeError: no"
    ):
        load_job("theirs")
    assert doctor.main() == 1
    assert (
        "theirs of xlm.jobs is a_package:Theirs of a-package, which cannot be imported"
        in capsys.readouterr().out
    )
    install("b-package", "", {"x/z.yaml": ""}, {"theirs": "b_package:Theirs", "odd": "b_package:__name__"})
    with pytest.raises(XLMError, match=r"theirs of xlm\.jobs is offered by .-package .* and .-package"):
        load_job("theirs")
    with pytest.raises(XLMError, match="b_package:__name__ of b-package is neither a Job nor a Tool"):
        load_job("odd")


WRITER = """
def write(results):
    path = results.folder / "theirs.txt"
    path.write_text(f"{results.metrics['test/prediction/exact_match']} {results.weights.step}")
    return {"theirs": path}
"""


def test_a_package_writes_a_file_about_each_result(
    install: Install, run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("w-package", WRITER, results={"theirs": "w_package:write"})
    run_toy("job_type=train", "trainer.max_steps=10")
    run = tmp_path / "runs" / "toy"
    assert (run / "theirs.txt").read_text() == "1.0 10"
    assert f"theirs       {run / 'theirs.txt'}" in capsys.readouterr().out
    run_toy("job_type=generate")
    [folder] = (run / "generate").iterdir()
    assert (folder / "theirs.txt").read_text() == "1.0 10"


PAGE_WRITER = """
def write(folder):
    path = folder / "their_page.html"
    path.write_text((folder / "traces.jsonl").read_text())
    return path
"""


def test_a_package_writes_the_page_of_a_trace(
    install: Install, run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {"their_page": "p_package:write"}
    install("p-package", PAGE_WRITER, pages=pages)
    run_toy("job_type=train", "trainer.max_steps=10", "trace=true")
    events = EventAccumulator(str(tmp_path / "runs" / "toy" / "tensorboard"))
    events.Reload()
    [shown] = events.Tensors("pages/their_page/text_summary")
    assert shown.tensor_proto.string_val[0].decode() == str(tmp_path / "runs" / "toy" / "their_page.html")
    for job, trace in (("eval", True), ("generate", True), ("generate", False)):
        run_toy(f"job_type={job}", f"trace={trace}")
        folder = max((tmp_path / "runs" / "toy" / job).iterdir())
        assert (folder / "their_page.html").exists() == trace
    assert "their_page" in capsys.readouterr().out
    with pytest.raises(XLMError, match="trace: the page shows show_generations texts, which is 0"):
        run_toy("job_type=generate", "trace=true", "show_generations=0")
