"""Evaluated rows as records: their likelihoods and their texts, decoded and replayed edit by edit."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from xlm.core.config.run_files import LIKELIHOODS, PREDICTIONS
from xlm.core.evaluation.row_files import RowFile
from xlm.core.protocols import Example, Generation, Likelihood, Prediction, Tokenizer, Trace

INSERT, DELETE = 0, 2
"""Operations of a trace; any other is a write."""
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


@dataclass(frozen=True)
class Edit:
    """One edit of a text."""

    kind: Literal["insert", "write", "remask", "delete"]
    """remask: a write of the mask token."""
    position: int
    """Gap or position in the text as it is at that moment."""
    token: int
    """Id of the new token; of the one that is deleted."""
    log_prob: float | None
    """Nats with which it was drawn, if the trace has them."""
    entropy: float | None
    """Nats: entropy of the distribution that it was drawn from, if the trace has them."""


@dataclass(frozen=True)
class State:
    """A text after one step of the sampler."""

    step: int
    ids: list[int]
    edited: set[int]
    """Positions in ``ids`` that were edited in this step."""
    edits: list[Edit]
    """The edits of this step, in order."""


def replay(
    trace: Trace, row: int, *, mask_id: int | None = None, length: int | None = None
) -> Iterator[State]:
    """The states that a row went through.

    Args:
        trace: The edits of a batch.
        row: The row.
        mask_id: The mask token, whose writes are of their own kind.
        length: Tokens of the final text, for a trace with probabilities, which also has the edits behind it.

    Yields:
        The state after each step that edited the row.
    """
    chosen = trace.row == row
    log_prob: Tensor | None = getattr(trace, "log_prob", None)
    entropy: Tensor | None = getattr(trace, "entropy", None)
    if log_prob is not None and length is not None:
        operations = trace.operation[chosen]
        num_cells = int((operations == INSERT).sum() - (operations == DELETE).sum())
        if num_cells > length:  # the others are behind the end
            chosen &= trace.position < length
    columns = (trace.step, trace.operation, trace.position, trace.token)
    entries = list(zip(*(column[chosen].tolist() for column in columns), strict=True))
    log_probs, entropies = (
        [None] * len(entries) if column is None else column[chosen].tolist() for column in (log_prob, entropy)
    )
    ids: list[int] = []
    edited: set[int] = set()
    edits: list[Edit] = []
    for i, (step, operation, position, token) in enumerate(entries):
        if operation == INSERT:
            kind = "insert"
            ids.insert(position, token)
            edited = {place + (place >= position) for place in edited} | {position}
        elif operation == DELETE:
            kind, token = "delete", ids.pop(position)  # noqa: PLW2901  # a deletion has no token of its own
            edited = {place - (place > position) for place in edited if place != position}
        else:
            kind = "remask" if token == mask_id else "write"
            ids[position] = token
            edited.add(position)
        is_drawn = step > 0 and kind in ("insert", "write")
        nats = (log_probs[i], entropies[i]) if is_drawn else (None, None)
        edits.append(Edit(kind, position, token, *nats))
        if i + 1 == len(entries) or entries[i + 1][0] != step:
            yield State(step, list(ids), edited, edits)
            edited, edits = set(), []


@dataclass(frozen=True)
class Frame:
    """A generated text after one step of the sampler, decoded."""

    step: int
    tokens: list[str]
    edited: set[int]
    """Positions in ``tokens`` that were edited in this step."""
    edits: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    """The edits of this step in order: kind, position, token, its id, and log_prob and entropy if known."""

    @staticmethod
    def of(state: State, tokenizer: Tokenizer) -> "Frame":
        """Decode a state."""
        edits: list[dict[str, object]] = []
        for edit in state.edits:
            shown: dict[str, object] = {
                "kind": edit.kind,
                "position": edit.position,
                "token": tokenizer.decode([edit.token]),
                "id": edit.token,
            }
            nats = {"log_prob": edit.log_prob, "entropy": edit.entropy}
            edits.append({**shown, **{name: value for name, value in nats.items() if value is not None}})
        tokens = [tokenizer.decode([token]) for token in state.ids]
        return Frame(state.step, tokens, state.edited, edits)


@dataclass(frozen=True)
class TracedText:
    """A generation step by step."""

    row: int
    """Index of its row in the loader."""
    generation: Generation
    frames: Sequence[Frame]


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
        self.traces: dict[str, list[TracedText]] = {}
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

    def open(self, states: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Open this process's part of each file, new or as in their ``states``."""
        self.predictions.open(states[0] if states is not None else None)
        self.likelihoods.open(states[1] if states is not None else None)

    def state(self) -> list[dict[str, Any]]:
        """The state of each file."""
        return [self.predictions.state(), self.likelihoods.state()]

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
                length = int(prediction.lengths[index])
                states = replay(prediction.trace, index, mask_id=tokenizer.mask_id, length=length)
                frames = [Frame.of(state, tokenizer) for state in states]
                traced = TracedText(rows[index], generation, frames)
                self.traces.setdefault(loader, []).append(traced)

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
        self.lengths: dict[str, Counter[int]] = {}
        """How many of all generations of each loader have each length, in this process."""
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
        self.lengths.setdefault(loader, Counter()).update(len(each["ids"]) for each in generations)
        if self.writer is not None:
            self.writer.write(loader, rows, prediction, generations, tokenizer, costs)

    def forget(self) -> None:
        """Begin a new evaluation."""
        self.samples, self.lengths = {}, {}

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
