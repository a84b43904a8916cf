"""The doctor's report on an intact installation; broken ones are in test_external.py."""

from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from xlm.core.command import doctor


def test_a_whole_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "rows.arrow").write_bytes(bytes(3_000_000))
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    for part in (
        "torch",
        "cpu",
        "xlm-core",
        "configs in",
        f"3.0 MB in {tmp_path}",
        "does not exist yet",
        "token present",
    ):
        assert part in printed
    assert "no problems" in printed
    assert "secret" not in printed


def test_another_projects_core_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metadata = tmp_path / "xlm_models-0.3.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: xlm-models\nVersion: 0.3.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert any("xlm-models 0.3.1 is another project's" in line for line in doctor.problems())


def test_a_file_that_hides_the_namespace_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "xlm").mkdir()
    (tmp_path / "xlm" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "find_spec", PathFinder.find_spec)
    assert any("hides every package of XLM" in line for line in doctor.problems())
