import re
from pathlib import Path

import pytest

import xlm.tasks.star
from xlm.tasks.star import LEVELS
from xlm.tasks.star.graphs import count_graphs

STAR_README = Path(xlm.tasks.star.__file__).with_name("README.md")
PACKAGE_README = Path(__file__).parents[1] / "README.md"


def test_example_of_the_package_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PACKAGE_README.read_text(), flags=re.DOTALL)
    exec(compile(code, str(PACKAGE_README), "exec"), {})
    assert capsys.readouterr().out.strip() == code.strip().splitlines()[-1].split("  # ")[1]


@pytest.mark.parametrize("name", list(LEVELS))
def test_table_of_the_star_readme_agrees_with_the_levels(name: str) -> None:
    level = LEVELS[name]
    (line,) = [line for line in STAR_README.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    arms, nodes, after, labels, prompt, target, graphs = [cell.strip() for cell in line.split("|")[2:-1]]
    lengths = sorted({level.min_path_length, level.max_path_length})
    assert nodes == " to ".join(map(str, lengths))
    assert str(level.min_plan_length) in after.split()
    assert ("hub = source" in after) == (level.min_plan_length == level.max_path_length - 1)
    numbers = (level.degree, level.num_labels, level.max_prompt_length, level.max_target_length)
    assert (arms, labels, prompt, target) == tuple(map(str, numbers))
    assert float(graphs.replace(" ", "")) == pytest.approx(count_graphs(level), rel=0.01)
