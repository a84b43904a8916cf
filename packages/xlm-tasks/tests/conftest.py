import json
from pathlib import Path
from typing import TypedDict, cast

import pytest


class StarExample(TypedDict):
    edge_list: list[list[int]]
    source: int
    goal: int
    path: list[int]
    prompt_ids: list[int]
    target_ids: list[int]


class StarVectors(TypedDict):
    kwargs: dict[str, int]
    input_block_size: int
    block_size: int
    examples: list[StarExample]


@pytest.fixture(scope="session")
def star_vectors() -> dict[str, StarVectors]:
    """Graphs of the published generator (see `data/README.md`), by level."""
    content = json.loads((Path(__file__).parent / "data" / "star_graphs.json").read_text())
    return {name: cast("StarVectors", content[name]) for name in ("easy", "medium", "hard")}
