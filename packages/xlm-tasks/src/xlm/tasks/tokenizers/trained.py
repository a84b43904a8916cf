"""A byte-level BPE tokenizer trained on a task's own text, once, and kept beside the prepared rows."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from datasets.arrow_writer import SchemaInferenceError
from datasets.exceptions import DatasetGenerationError
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from xlm.tasks.tokenizers.pretrained import ROLES, PretrainedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE = "tokenizer.json"
BYTES = 256
"""Every vocabulary holds all bytes, so no text is unknown."""

DEFAULT_SPECIAL_TOKENS: Mapping[str, str | None] = {role: f"<|{role}|>" for role in ROLES if role != "unk"}


class TextSource(Protocol):
    """Where the texts come from: any source of rows."""

    def __call__(self, *, split: str) -> Iterable[Mapping[str, object]]:
        """Rows of one split."""
        ...


class TrainedTokenizer(PretrainedTokenizer):
    """Byte-level BPE trained on one split of a source; found in ``folder`` if it was trained before.

    The same rows and settings give the same tokenizer, so it does not matter which of several processes
    trains it. The files lie under a hash of the settings and of the source's name and arguments, and are
    moved to their place when complete. A folder of files that changed meanwhile is not read again: remove the
    tokenizer's folder to train anew. To score other text with a trained model, give the model's tokenizer as
    ``saved``: a ``TrainedTokenizer`` with another source is another tokenizer.

    Args:
        source: The task's source of rows.
        split: Name of the source's split to train on; never one that is evaluated on.
        column: Column of the rows that holds the text; several, if a row has several texts.
        vocab_size: Ids in all: bytes, merges and special tokens. Fewer if the texts are too short for more.
        folder: Where trained tokenizers are kept.
        saved: Folder with the ``tokenizer.json`` of an earlier training, which is taken as it is.
        special_tokens: Role to token, as in ``PretrainedTokenizer``.

    Raises:
        ValueError: If ``vocab_size`` is too small for a merge, the split has no text, or it cannot be read;
            if ``saved`` has no tokenizer.
    """

    def __init__(
        self,
        source: TextSource,
        *,
        split: str,
        vocab_size: int,
        folder: str,
        column: str | Sequence[str] = "text",
        saved: str | None = None,
        special_tokens: Mapping[str, str | None] | None = None,
    ) -> None:
        chosen = dict(DEFAULT_SPECIAL_TOKENS if special_tokens is None else special_tokens)
        tokens = sorted({token for token in chosen.values() if token})
        least = BYTES + len(tokens) + 1
        if vocab_size < least:
            raise ValueError(
                f"vocab_size must be at least {least} ({BYTES} bytes, {len(tokens)} special tokens and a "
                f"merge), got {vocab_size}"
            )
        settings = {
            "split": split,
            "column": column if isinstance(column, str) else list(column),
            "vocab_size": vocab_size,
            "tokens": tokens,
        }
        home = Path(saved or Path(folder) / _key(source, settings)).expanduser()
        if not (home / FILE).is_file():
            if saved is not None:
                raise ValueError(f"there is no {FILE} in {home}")
            texts = _texts(_rows(source, split), [column] if isinstance(column, str) else column)
            _keep(train_bpe(texts, vocab_size=vocab_size, special_tokens=tokens), home)
        loaded = _wrap(Tokenizer.from_file(str(home / FILE)))
        self._set_up(loaded, str(home), chosen)


def train_bpe(texts: Iterable[str], *, vocab_size: int, special_tokens: Iterable[str] = ()) -> Tokenizer:
    """Train a byte-level BPE tokenizer, deterministically.

    Args:
        texts: Read once.
        vocab_size: Ids in all.
        special_tokens: Take the first ids, in this order.

    Raises:
        ValueError: If no text has a character.
    """
    seen = [0]

    def counted() -> Iterator[str]:
        for text in texts:
            seen[0] += len(text)
            yield text

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(counted(), trainer)
    if not seen[0]:
        raise ValueError(
            "there is no text to train a tokenizer on: the rows of its split are empty, or there are none "
            "(see the task's source and splits)"
        )
    return tokenizer


def _rows(source: TextSource, split: str) -> Iterable[Mapping[str, object]]:
    try:
        return source(split=split)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, SchemaInferenceError):
            raise ValueError("no file matches the source's data_files, or none of them has a row") from error
        hint = ""
        if isinstance(cause, UnicodeDecodeError):
            hint = "; encoding_errors=replace, of the source, reads such bytes as U+FFFD"
        raise ValueError(f"{type(cause).__name__} while reading the texts: {cause}{hint}") from error


def _texts(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> Iterator[str]:
    for row in rows:
        for column in columns:
            if column not in row:
                raise ValueError(f"the rows have no column {column!r}; they have {', '.join(row)}")
            if row[column] is not None:
                yield str(row[column])


def _key(source: TextSource, settings: Mapping[str, object]) -> str:
    """Hash of the settings and of the source's name and arguments."""
    function: Callable[..., object] = source
    arguments: list[str] = []
    while isinstance(function, partial):
        arguments += [repr(function.args), repr(sorted(function.keywords.items()))]
        function = function.func
    name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    content = json.dumps({**settings, "source": [name, *arguments]}, sort_keys=True)
    return f"bpe-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _keep(tokenizer: Tokenizer, home: Path) -> None:
    """Save a tokenizer so that ``home`` is either complete or not there."""
    home.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}-"))
    tokenizer.save(str(unfinished / FILE))
    try:
        unfinished.rename(home)
    except OSError:
        # Another process was first; its tokenizer is the same.
        shutil.rmtree(unfinished)


def _wrap(backend: Tokenizer) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend)
