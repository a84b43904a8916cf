"""Packages of others: found by their metadata; a broken one stops no run that does not use it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xlm.core.command import arguments, cli, doctor
from xlm.core.command.discovery import config_packages, providers
from xlm.core.config.errors import XLMError

from .conftest import Compose

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path, as installing it would: metadata, a module, configs."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, code: str = "", configs: dict[str, str] | None = None) -> Path:
        module = name.replace("-", "_")
        metadata = site / f"{module}-0.1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (metadata / "entry_points.txt").write_text(f"[xlm.configs]\n{module} = {module}.configs\n")
        (site / module).mkdir()
        (site / module / "__init__.py").write_text(code)
        for path, text in (configs or {}).items():
            file = site / module / "configs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        config_packages.cache_clear()
        return site / module

    yield install
    config_packages.cache_clear()


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
    assert "their-model" in capsys.readouterr().out.partition("what is wrong")[2]


def test_what_is_wrong_is_said_when_it_is_used(install: Install, compose_toy: Compose) -> None:
    install("their-model", *BROKEN["bad YAML"])
    with pytest.raises(Exception, match=r"(?s)theirs\.yaml"):
        compose_toy("experiment=theirs")
    install("lost-model", *BROKEN["no folder"])
    with pytest.raises(
        XLMError, match=r"lost-model declares configs in lost_model\.configs, which is not there"
    ):
        arguments.check_arguments(["experiment=lost_one"])
