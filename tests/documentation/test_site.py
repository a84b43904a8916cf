"""The site builds without a warning, loads nothing from elsewhere, explains every key; its blocks run."""

import re
import sys
from html import unescape
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from .blocks import ROOT, blocks_of, markdown_files
from .running import copy_of_the_repository, run_file

sys.path.insert(0, str(ROOT / "docs/tools"))
import configuration
import site_hook

FILES = [path for path in markdown_files() if any(block.runs for block in blocks_of(path))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; strict, so a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_family_and_task_has_a_page(site: Path) -> None:
    for family in site_hook.families():
        assert (site / "models" / family / "index.html").exists()
    assert (site / "tasks" / "star" / "index.html").exists()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert not list(site_hook.external_hosts(site))


def test_equations_are_drawn(site: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert any("<math" in page for page in pages)
    assert not any('class="arithmatex"' in page for page in pages)


def test_every_family_has_its_equations(site: Path) -> None:
    for family in site_hook.families():
        page = (site / "models" / family / "index.html").read_text(encoding="utf-8")
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"' in page, family


def test_equations_need_no_font_for_mathematics(site: Path) -> None:
    """Nothing is drawn with the letters U+1D400 to U+1D7FF: not as they stand, nor as browsers map them."""
    for path in site.rglob("*.html"):
        for equation in re.findall(r"<math.*?</math>", path.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search("[\U0001d400-\U0001d7ff]", equation), path
            assert not re.search(r"<mi>.</mi>", unescape(equation)), path


def test_letters_of_equations() -> None:
    drawn = site_hook.with_equations(r'<span class="arithmatex">\(\mathbb E_x \mathbb R \log ; z\)</span>')
    assert '<mi mathvariant="normal" class="letter double-struck">E</mi>' in drawn
    assert '<mi mathvariant="normal" class="letter double-struck">ℝ</mi>' in drawn
    assert '<mi mathvariant="normal" class="letter">x</mi>' in drawn
    assert "<mi>log</mi><mo>;</mo>" in drawn


def test_every_key_is_explained() -> None:
    assert not configuration.unexplained()


def test_a_key_without_explanation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    option = next(option for option in configuration.options() if option.name == "adamw")
    bare = tmp_path / "bare.yaml"
    bare.write_text("_target_: torch.optim.AdamW\nlr: 1\n")
    changed = configuration.Option(option.group, "bare", option.package, bare)

    def only_changed() -> list[configuration.Option]:
        return [changed]

    monkeypatch.setattr(configuration, "options", only_changed)
    monkeypatch.setattr(configuration, "ROOT", tmp_path)
    assert configuration.unexplained() == ["bare.yaml: lr"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(copy_of_the_repository(tmp_path))
    assert run_file(path, monkeypatch) > 0
