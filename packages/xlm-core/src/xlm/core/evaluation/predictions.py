"""Generated texts as records: decoded, written as JSON lines, and replayed edit by edit."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torch import Tensor

from xlm.core.protocols import Example, Generation, Prediction, Tokenizer, Trace

INSERT = 0
NUM_SAMPLES = 8
"""Number of generations of a validation that are kept for display."""
ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Characters that JSON allows in a text but some readers treat as line ends."""


def decode(prediction: Prediction, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Generation]:
    """Generated rows with the prompts and references of their examples."""
    rows = zip(prediction.ids.tolist(), prediction.lengths.tolist(), examples, strict=True)
    generations: list[Generation] = []
    for padded, length, example in rows:
        ids: list[int] = padded[:length]
        prompt_ids, reference_ids = _ids(example.get("prompt_ids")), _ids(example.get("target_ids"))
        generation = Generation(
            prompt_ids=prompt_ids,
            ids=ids,
            reference_ids=reference_ids,
            prompt=tokenizer.decode(prompt_ids),
            text=tokenizer.decode(ids),
            reference=tokenizer.decode(reference_ids),
        )
        if "fixed" in example:
            generation["fixed"] = example["fixed"].tolist()
        generations.append(generation)
    return generations


def _ids(tensor: Tensor | None) -> list[int]:
    return [] if tensor is None else tensor.tolist()


def replay(trace: Trace, row: int) -> Iterator[tuple[int, list[int], set[int]]]:
    """The states that a row went through.

    Yields:
        After each step that edited the row: the step, the ids, and the positions edited in this step.
    """
    chosen = trace.row == row
    columns = (trace.step, trace.operation, trace.position, trace.token)
    edits = list(zip(*(column[chosen].tolist() for column in columns), strict=True))
    ids: list[int] = []
    edited: set[int] = set()
    for i, (step, operation, position, token) in enumerate(edits):
        if operation == INSERT:
            ids.insert(position, token)
            edited = {place + (place >= position) for place in edited} | {position}
        else:
            ids[position] = token
            edited.add(position)
        if i + 1 == len(edits) or edits[i + 1][0] != step:
            yield step, list(ids), edited
            edited = set()


@dataclass(frozen=True)
class Frame:
    """A generated text after one step of the sampler."""

    step: int
    tokens: list[str]
    edited: set[int]
    """Positions in ``tokens`` that were edited in this step."""


class PredictionWriter:
    """Writes generations to ``predictions.jsonl`` and keeps the first few of each loader step by step.

    Args:
        path: The merged file of all processes, in the order of the rows.
        num_traces: Generations of each loader that are kept as frames.
        rank: This process; each writes its own part until ``merge``.
        world_size: Number of processes.
    """

    def __init__(self, path: Path, *, num_traces: int, rank: int = 0, world_size: int = 1) -> None:
        self.path = path
        self.num_traces = num_traces
        self.rank = rank
        self.world_size = world_size
        self.traces: dict[str, list[tuple[Generation, list[Frame]]]] = {}
        self._next_row: dict[str, int] = {}
        self._file: TextIO | None = None

    def open(self) -> None:
        """Open this process's part in the folder of ``path``."""
        self._file = self._part(self.rank).open("w", encoding="utf-8", newline="\n")

    def wants_trace(self, loader: str) -> bool:
        """Whether more generations of ``loader`` are to be kept step by step."""
        return self.rank == 0 and len(self.traces.get(loader, [])) < self.num_traces

    def write(
        self,
        loader: str,
        prediction: Prediction,
        generations: Sequence[Generation],
        tokenizer: Tokenizer,
        costs: Mapping[str, Tensor],
    ) -> None:
        """Append the rows of one prediction with their costs, (rows,) each."""
        assert self._file is not None
        spent = {name: values.tolist() for name, values in costs.items()}
        for row, generation in enumerate(generations):
            place = self._next_row.get(loader, self.rank)
            self._next_row[loader] = place + self.world_size
            cost = {name: values[row] for name, values in spent.items()}
            record = {"loader": loader, "row": place, **cost, **generation}
            self._file.write(_one_line(record) + "\n")
            if prediction.trace is not None and self.wants_trace(loader):
                frames = [
                    Frame(step, [tokenizer.decode([token]) for token in ids], edited)
                    for step, ids, edited in replay(prediction.trace, row)
                ]
                self.traces.setdefault(loader, []).append((generation, frames))

    def close(self) -> None:
        """Finish this process's part."""
        if self._file is not None:
            self._file.close()

    def merge(self) -> None:
        """Merge the closed parts of all processes (on rank 0)."""
        parts = [self._part(rank) for rank in range(self.world_size)]
        lines: list[str] = []
        for part in parts:
            with part.open(encoding="utf-8", newline="\n") as file:
                lines.extend(file)
        lines.sort(key=lambda line: (lambda record: (record["loader"], record["row"]))(json.loads(line)))
        self.path.write_text("".join(lines), encoding="utf-8", newline="\n")
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.rank{rank}")


class GeneratedTexts:
    """Receives generated texts: keeps the first of each loader, and writes all if there is a writer."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Generation]] = {}
        """The first generations of each loader in the last evaluation."""
        self.writer: PredictionWriter | None = None

    def wants_trace(self, loader: str) -> bool:
        """Whether the next generations of ``loader`` are to be kept step by step."""
        return self.writer is not None and self.writer.wants_trace(loader)

    def add(
        self,
        loader: str,
        prediction: Prediction,
        generations: Sequence[Generation],
        tokenizer: Tokenizer,
        costs: Mapping[str, Tensor],
    ) -> None:
        """Add the rows of one prediction with their costs, (rows,) each."""
        self.samples.setdefault(loader, list(generations[:NUM_SAMPLES]))
        if self.writer is not None:
            self.writer.write(loader, prediction, generations, tokenizer, costs)

    @contextmanager
    def writing(self, writer: PredictionWriter) -> Generator[None]:
        """Write all texts generated within this context to files."""
        self.writer = writer
        try:
            yield
        finally:
            self.writer = None
            writer.close()


def _one_line(record: Mapping[str, object]) -> str:
    """JSON that every reader treats as one line; lone surrogates are escaped."""
    text = json.dumps(record, ensure_ascii=False).translate(ESCAPED)
    return text.encode("utf-8", "backslashreplace").decode()
