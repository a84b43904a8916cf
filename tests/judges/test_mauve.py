"""MAUVE by its authors' package: the same from our features as from its own, and in the right order.

uv run nox -s judges
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xlm.tasks.text import mauve_score
from xlm.tasks.tokenizers import train_bpe

mauve: Any = pytest.importorskip("mauve", reason="the extra xlm-tasks[mauve] is not installed")

WORDS = ("cat", "mat", "rat", "hat", "bat", "sat")


def texts(seed: int, words: tuple[str, ...], number: int = 60) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(words), (number, 6), generator=generator).tolist()
    return [" ".join(words[draw] for draw in row[: 3 + row[0] % 3]) for row in draws]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2; the package takes a folder with "gpt2" in its name only."""
    folder = tmp_path_factory.mktemp("gpt2")
    backend = train_bpe(list(WORDS), vocab_size=280, special_tokens=["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(str(folder))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    return folder


def test_it_is_what_the_package_makes_of_the_texts(folder: Path) -> None:
    generated, real = texts(0, WORDS), texts(1, WORDS[:4])
    expected = mauve.compute_mauve(
        p_text=real, q_text=generated, featurize_model_name=str(folder), max_text_length=48, verbose=False
    ).mauve
    found = mauve_score(generated, real, model=str(folder), max_length=48)
    assert 0 < expected < 1
    assert found == pytest.approx(expected, abs=1e-3)


def test_texts_of_the_same_kind_are_closer(folder: Path) -> None:
    same = mauve_score(texts(0, WORDS), texts(1, WORDS), model=str(folder), max_length=48)
    other = mauve_score(texts(0, WORDS[:2]), texts(1, WORDS[3:]), model=str(folder), max_length=48)
    assert other < 0.3 < same
