"""Evaluated rows as records: their likelihoods and their texts, decoded and replayed edit by edit."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from xlm.core.config.run_files import LIKELIHOODS, PREDICTIONS
from xlm.core.evaluation.row_files import RowFile
from xlm.core.protocols import Example, Generation, Likelihood, Prediction, Tokenizer, Trace

INSERT = 0
NUM_SAMPLES = 8
"""Number of generations of a validation that are kept for display."""


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
    """Writes a line for each evaluated row, and keeps the first generations of each loader step by step.

    Args:
        folder: Folder of the files.
        num_traces: Generations of each loader that are kept as frames.
        rank: This process; each writes its own part until ``merge``.
        world_size: Number of processes.
    """

    def __init__(self, folder: Path, *, num_traces: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_traces = num_traces
        self.rank = rank
        self.traces: dict[str, list[tuple[Generation, list[Frame]]]] = {}
        self.predictions, self.likelihoods = (
            RowFile(folder / name, rank=rank, world_size=world_size) for name in (PREDICTIONS, LIKELIHOODS)
        )

    @property
    def folder(self) -> Path:
        """Folder of the files, the same in all processes before ``open``."""
        return self.predictions.path.parent

    @folder.setter
    def folder(self, folder: Path) -> None:
        for file in (self.predictions, self.likelihoods):
            file.path = folder / file.path.name

    def open(self) -> None:
        """Open this process's part of each file."""
        self.predictions.open()
        self.likelihoods.open()

    def wants_trace(self, loader: str) -> bool:
        """Whether more generations of ``loader`` are to be kept step by step."""
        return self.rank == 0 and len(self.traces.get(loader, [])) < self.num_traces

    def write(
        self,
        loader: str,
        rows: Sequence[int],
        prediction: Prediction,
        generations: Sequence[Generation],
        tokenizer: Tokenizer,
        costs: Mapping[str, Tensor],
    ) -> None:
        """Append the rows of one prediction with their costs, (rows,) each."""
        spent = {name: values.tolist() for name, values in costs.items()}
        records = [
            {**{name: values[index] for name, values in spent.items()}, **generation}
            for index, generation in enumerate(generations)
        ]
        self.predictions.write(loader, rows, records)
        for index, generation in enumerate(generations):
            if prediction.trace is not None and self.wants_trace(loader):
                frames = [
                    Frame(step, [tokenizer.decode([token]) for token in ids], edited)
                    for step, ids, edited in replay(prediction.trace, index)
                ]
                self.traces.setdefault(loader, []).append((generation, frames))

    def write_likelihood(
        self, loader: str, rows: Sequence[int], of: str, likelihood: Likelihood, seconds: float
    ) -> None:
        """Append the likelihood of each row of a batch, in nats, of the network or of its sampler."""
        columns = (likelihood.nll.double().tolist(), likelihood.num_tokens.tolist())
        records = [
            {"of": of, "nll": nll, "tokens": tokens, "seconds": seconds / len(rows)}
            for nll, tokens in zip(*columns, strict=True)
        ]
        self.likelihoods.write(loader, rows, records)

    def close(self) -> None:
        """Finish this process's part of each file."""
        self.predictions.close()
        self.likelihoods.close()

    def merge(self) -> None:
        """Merge the closed parts of all processes (on rank 0)."""
        self.predictions.merge()
        self.likelihoods.merge()
        if not self.likelihoods.path.stat().st_size:  # nothing was scored
            self.likelihoods.path.unlink()


class GeneratedTexts:
    """Receives generated texts and likelihoods of rows: keeps some texts, writes all rows to a writer."""

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
        rows: Sequence[int],
        prediction: Prediction,
        generations: Sequence[Generation],
        tokenizer: Tokenizer,
        costs: Mapping[str, Tensor],
    ) -> None:
        """Add the rows of one prediction with their costs, (rows,) each."""
        self.samples.setdefault(loader, list(generations[:NUM_SAMPLES]))
        if self.writer is not None:
            self.writer.write(loader, rows, prediction, generations, tokenizer, costs)

    def add_likelihood(
        self, loader: str, rows: Sequence[int], of: str, likelihood: Likelihood, seconds: float
    ) -> None:
        """Add the likelihood of each row of a batch: ``of`` the network or its sampler, in ``seconds``."""
        if self.writer is not None:
            self.writer.write_likelihood(loader, rows, of, likelihood, seconds)

    @contextmanager
    def writing(self, writer: PredictionWriter) -> Generator[None]:
        """Write all rows evaluated within this context to files."""
        self.writer = writer
        try:
            yield
        finally:
            self.writer = None
            writer.close()
