"""How the pages are written: width of blocks, one form of each command, pictures that can stand still."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from .blocks import ROOT, Block, blocks_of, markdown_files, shell_commands

sys.path.insert(0, str(ROOT / "docs/tools"))
import make_result_charts

WIDTH = 88
"""Columns of a block on a page that is 1300 pixels wide."""
BLOCKS = [block for path in markdown_files() for block in blocks_of(path)]


def too_wide(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if len(line) > WIDTH]


def test_no_block_is_wider_than_the_page() -> None:
    assert [(block.place, line) for block in BLOCKS for line in too_wide(block)] == []


def bare(block: Block) -> list[str]:
    """Commands of a block that need an activated environment; what a shell's own start-up file holds may."""
    programs = re.compile(r"([A-Z_]+=\S+ +)*(srun )?(xlm|xlm-scaffold|python|torchrun|nox|pytest)\b")
    commands = shell_commands(block.text) if block.language == "bash" else block.text.splitlines()
    return [c for c in commands if programs.match(c) and "--completion" not in c]


def test_every_command_runs_in_the_environment_of_the_clone() -> None:
    shells = [block for block in BLOCKS if block.language in ("bash", "text", "")]
    assert [(block.place, command) for block in shells for command in bare(block)] == []


def test_the_checks_find_what_they_are_for() -> None:
    text = "xlm job_type=train\nuv run xlm job_type=train\nA=1 xlm\n" + "x" * (WIDTH + 1) + "\n"
    block = Block(ROOT / "README.md", 1, "bash", "", text)
    assert bare(block) == ["xlm job_type=train", "A=1 xlm"]
    assert len(too_wide(block)) == 1


def test_a_picture_that_moves_begins_and_rests_with_its_last_frame() -> None:
    """What draws a still takes the first moment; paper and reduced motion get no animation at all."""
    picture = (ROOT / "docs/assets/generation.svg").read_text(encoding="utf-8")
    still, _, rest = picture.partition("@media screen and (prefers-reduced-motion: no-preference) {")
    moving, _, shapes = rest.partition("</style>")
    assert "animation" not in still + shapes
    keyframes = re.findall(r"@keyframes (\w+) \{ (.*) \}\n", moving)
    assert len(keyframes) == len(re.findall("<text id|<rect", shapes))
    for name, frames in keyframes:
        if name.endswith("m"):  # a mask: not there before and after
            assert frames.startswith("0%")
            assert re.match(r"0%, [\d.]+% \{ opacity: 0 \}", frames)
            assert frames.endswith("100% { opacity: 0 }")
            [shape] = [line for line in shapes.splitlines() if f'id="{name}"' in line]
            assert 'opacity="0"' in shape
        else:
            resting = "opacity: 1; transform: translateX(0px); fill: var(--ink)"
            assert re.match(rf"0%, [\d.]+% {{ {re.escape(resting)} }}", frames)
            assert frames.endswith(f"100% {{ {resting} }}")


def test_charts_are_those_of_the_tables() -> None:
    """`uv run python docs/tools/make_result_charts.py` redraws them."""
    for path, picture in make_result_charts.pictures().items():
        assert path.read_text(encoding="utf-8") == picture, path


def test_curves_are_read_from_both_kinds_of_tables(tmp_path: Path) -> None:
    chart = make_result_charts.Chart("x.svg", ("x.md", "## x"), 0, "x", 0, 1, (0, 1))
    by_row = "## x\n\n| step | 5 | 10 |\n|---|---|---|\n| ilm | 0.5 | |\n| mdlm | 0.1 | 0.2 |\n"
    rows = (
        "| step | ilm | mdlm |",
        "|---|---|---|",
        "| 5 | 0.5 | 0.1 |",
        "| 10 | | 0.2 |",
        "| all | 3 s | |",
    )
    by_column = "## x\n\n" + "\n".join(rows) + "\n"
    for page in (by_row, by_column):
        (tmp_path / "x.md").write_text(page)
        assert make_result_charts.curves(chart, tmp_path) == {
            "ilm": [(5, 0.5)],
            "mdlm": [(5, 0.1), (10, 0.2)],
        }
    (tmp_path / "x.md").write_text("## y\n")
    with pytest.raises(ValueError, match="no table 0 over steps"):
        make_result_charts.curves(chart, tmp_path)


def test_points_of_rules_are_read_from_the_table_of_each_family(tmp_path: Path) -> None:
    section = ("x.md", "## x")
    chart = make_result_charts.Points("x.svg", section, "nats", "x", 0, 1, (0, 1), most=10, named={})
    table = (
        "| rule | nats | evaluations of a text |\n|---|---|---|\n| klass | 5.5 | {} |\n| p2 | none | 8 |\n"
    )
    (tmp_path / "x.md").write_text(f"## x\n\n{table.format(3)}\nmdlm:\n\n{table.format(4)}\n")
    found = make_result_charts.points(chart, tmp_path)
    assert found == {"mlm": {"klass": (3, 5.5)}, "mdlm": {"klass": (4, 5.5)}}
    (tmp_path / "x.md").write_text(f"## x\n\n{table.format(3)}")
    with pytest.raises(ValueError, match=r"1 tables over rules under .*'## x'.*, 2 are drawn"):
        make_result_charts.points(chart, tmp_path)


def test_divergences_are_read_from_the_table_of_each_language(tmp_path: Path) -> None:
    sections = {name: ("x.md", f"## {name}") for name in ("a", "b")}
    chart = make_result_charts.Divergences("x.svg", sections, "x", (0.1, 1))
    table = "| family | nats | KL(language, model) |\n|---|---|---|\n| arlm (exact) | 20.1 | {} |\n"
    page = f"## a\n\n{table.format('0.10')}\n## b\n\n{table.format('at most 0.31 (0.07 to 0.57)')}"
    page += "| udlm (upper bound) | 30.4 | at most -0.17 (-0.65 to 0.35) |\n"  # not drawn
    (tmp_path / "x.md").write_text(page)
    assert make_result_charts.divergences(chart, tmp_path) == {"a": {"arlm": 0.1}, "b": {"arlm": 0.31}}
    (tmp_path / "x.md").write_text(f"## a\n\n{table.format('none')}")
    with pytest.raises(ValueError, match=r"a family without a divergence under .*'## a'"):
        make_result_charts.divergences(chart, tmp_path)


def test_the_versions_that_are_said_to_be_tested_are_those_of_lock_and_bounds() -> None:
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    [locked] = [package["version"] for package in lock["package"] if package["name"] == "torch"]
    assert f"torch {locked.rpartition('.')[0]} (`uv.lock`)" in said
    lowest = {
        name: re.search(r'"torch>=([\d.]+)"', (ROOT / f"packages/xlm-{name}/pyproject.toml").read_text())
        for name in ("modules", "core")
    }
    assert lowest["modules"]
    assert lowest["core"]
    assert f"with torch {lowest['modules'][1]}, with {lowest['core'][1]} for the harness" in said
