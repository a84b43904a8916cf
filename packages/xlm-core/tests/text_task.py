"""A task of short texts for the tests of the pipeline: documents of words that are numbers."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlm.core.config.schema import LoaderSettings, Stage, TaskSettings
from xlm.core.data import PreparedTask, TaskParts, prepare
from xlm.core.data.prepare import damage_of

from .toy_family import ToyTokenizer

SEPARATOR = 99


class WordTokenizer(ToyTokenizer):
    vocab_size = 100


def documents(split: str, *, number: int = 40, longest: int = 30) -> list[list[int]]:
    """Documents of 1 to ``longest`` tokens, different in every split."""
    generator = random.Random(split)
    return [[generator.randrange(1, 90) for _ in range(generator.randint(1, longest))] for _ in range(number)]


def text_rows(split: str, *, number: int = 40, longest: int = 30) -> Iterator[dict[str, object]]:
    for document in documents(split, number=number, longest=longest):
        yield {"text": " ".join(map(str, document))}


def text_preprocess(row: Mapping[str, Any], tokenizer: WordTokenizer) -> dict[str, str]:
    return {"target_ids": row["text"]}


def even_length(row: Mapping[str, Any]) -> bool:
    return len(row["text"].split()) % 2 == 0


def nothing(row: Mapping[str, Any]) -> bool:
    return False


def task(**changes: Any) -> TaskSettings:
    node = {
        "name": "text",
        "source": {"_target_": "text_task.text_rows"},
        "preprocess": {"_target_": "text_task.text_preprocess"},
        "tokenizer": {"_target_": "text_task.WordTokenizer"},
        "splits": {"train": "train", "val": "val"},
    }
    return TaskSettings.model_validate(node | changes)


def parts(**changes: Any) -> TaskParts:
    slots: dict[str, Any] = {
        "source": text_rows,
        "preprocess": text_preprocess,
        "tokenizer": WordTokenizer(),
    }
    return TaskParts(**(slots | changes))


def prepared(cache_dir: Path, settings: TaskSettings | None = None, **changes: Any) -> PreparedTask:
    return prepare(settings or task(), parts(**changes), cache_dir=cache_dir)


def look(folder: Path, used: Sequence[Stage] | None = None) -> str | None:
    """What is wrong with prepared data."""
    return damage_of(folder, ("train", "val"), used)


def loader(**changes: Any) -> LoaderSettings:
    node = {
        "split": "train",
        "uses": ["loss"],
        "collator": {"_target_": "text_task.Pad"},
        "batch_size": 4,
        "num_workers": 0,
        "max_rows": None,
    }
    return LoaderSettings.model_validate(node | changes)


def packing(**changes: Any) -> dict[str, Any]:
    return {"block_length": 16, "separator_id": SEPARATOR, "keep_apart": True, **changes}


def joined(texts: Sequence[Sequence[int]]) -> list[int]:
    """Documents with a separator after each, the plain way."""
    return [token for text in texts for token in [*text, SEPARATOR]]
