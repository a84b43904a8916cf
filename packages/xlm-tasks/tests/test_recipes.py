"""Numbers of recipes that are easily taken for others, and what the READMEs say of the tasks."""

import re
from pathlib import Path

import pytest
import yaml

import xlm.tasks
import xlm.tasks.star
from xlm.tasks.star import LEVELS
from xlm.tasks.star.graphs import count_graphs

TASKS = Path(next(iter(xlm.tasks.__path__)))
ACCUMULATING = {"openwebtext": 5000, "safe": 5000}
"""Recipes of several micro-batches a step, and the optimizer steps between their validations."""


def trainer(recipe: Path) -> dict[str, int]:
    return yaml.safe_load(recipe.read_text()).get("trainer", {})


def test_which_recipes_accumulate() -> None:
    found = {
        path.stem
        for path in TASKS.glob("*/configs/recipe/*.yaml")
        if trainer(path).get("accumulate_grad_batches", 1) > 1
    }
    assert found == set(ACCUMULATING)


@pytest.mark.parametrize("name", ACCUMULATING)
def test_intervals_count_optimizer_steps_not_micro_batches(name: str) -> None:
    [path] = TASKS.glob(f"*/configs/recipe/{name}.yaml")
    assert trainer(path)["val_check_interval"] == ACCUMULATING[name]


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
