"""Generated configs that attack who loads a model; `hostile_configs.py` runs any number of them."""

from pathlib import Path

from .hostile_configs import ATTACKS, attack


def test_hostile_configs_are_refused(tmp_path: Path) -> None:
    tried = attack(200, seed=13, root=tmp_path.resolve())
    assert tried.total() == 200
    assert tried.keys() == {"broken_text", *(function.__name__ for function in ATTACKS)}
