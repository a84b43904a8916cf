"""Numbers of the recipes that are easily taken for others."""

from pathlib import Path

import pytest
import yaml

import xlm.tasks

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
