"""A generation that continues from a step of a recorded one, also with an edit of the user.

All randomness belongs to the row, so the recorded steps are generated again, beside the same rows, and
compared with the record. An edit is written behind its step by the predictor's ``fork``; what is drawn
afterwards uses the noise that it would have used without.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor, nn

from xlm.core.config.errors import XLMError
from xlm.core.config.run_files import TRACES
from xlm.core.data import LoadedBatch
from xlm.core.evaluation.metrics import SummedMetric, costs, synchronised_time
from xlm.core.evaluation.predictions import Frame, GeneratedTexts, State, TracedText, decode, replay
from xlm.core.evaluation.slots import Slots
from xlm.core.protocols import Prediction, Tokenizer
from xlm.modules.records import UserEdit


@dataclass(frozen=True)
class RecordedText:
    """A generation of a file of traces, up to a step."""

    where: str
    """Its file and number, for messages."""
    loader: str
    """Stage and name of its loader, such as ``test/prediction``."""
    row: int
    """Index of its row in the loader."""
    step: int
    """The step to continue from."""
    edits: list[tuple[int, str, int, int]]
    """Step, kind, position and token id of each edit up to this step."""


def read_recorded(place: str) -> RecordedText:
    """Read the generation that ``fork=TRACE@STEP`` names.

    Args:
        place: ``FOLDER@STEP`` or ``FOLDER:NUMBER@STEP``, with the folder of a run, or of a later job, and
            the number of the text in its ``traces.jsonl``, from 1 (1 if it is left out).

    Raises:
        XLMError: If there is no such text or step, or the file has no token ids.
    """
    form = "write it as in fork=runs/first@3, or fork=runs/first:2@3 for the second recorded text"
    trace, separator, after = place.rpartition("@")
    if not separator or not trace or not after.isdecimal():
        raise XLMError(f"fork: {place!r} has no step; {form}")
    folder, colon, number = trace.rpartition(":")
    if not colon:
        folder, number = trace, "1"
    if not number.isdecimal():
        raise XLMError(f"fork: {number!r} is no number of a text; {form}")
    path = Path(folder).expanduser()
    path = path if path.name == TRACES else path / TRACES
    if not path.is_file():
        raise XLMError(f"fork: there is no {path}. A job with show_generations above 0 writes one; {form}")
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise XLMError(f"fork: {path} is damaged: {error}") from error
    if not 1 <= int(number) <= len(records):
        raise XLMError(f"fork: {path} has {len(records)} texts, numbered from 1, and no text {number}")
    return _up_to(records[int(number) - 1], int(after), f"text {number} of {path}")


def _up_to(record: dict[str, Any], step: int, where: str) -> RecordedText:
    steps = [found["step"] for found in record["steps"]]
    if step == 0 or step not in steps:
        known = ", ".join(str(found) for found in steps if found > 0)
        raise XLMError(f"fork: {where} has no edit in step {step}, but in {known or 'no step'}")
    edits = [(found["step"], edit) for found in record["steps"] for edit in found["edits"]]
    if "row" not in record or any("id" not in edit for _, edit in edits):
        raise XLMError(f"fork: {where} is of an earlier version, without token ids. Generate it again")
    kept = [(at, edit["kind"], edit["position"], edit["id"]) for at, edit in edits if at <= step]
    return RecordedText(where, record["loader"], record["row"], step, kept)


def token_id(token: str, tokenizer: Tokenizer) -> int:
    """The id of the token of an edit.

    Raises:
        XLMError: If the text is not exactly one token.
    """
    ids = tokenizer.encode(token)
    if len(ids) != 1:
        shown = " ".join(repr(tokenizer.decode([each])) for each in ids)
        raise XLMError(f"fork_edit.token: {token!r} has {len(ids)} tokens ({shown}); an edit writes one")
    return ids[0]


class TextFork:
    """The use of the loader of a recorded text: generates its batch, and keeps this text alone.

    Args:
        slots: The objects; only the predictor and the tokenizer are used.
        recorded: The text.
        edit: Position and token id of an edit; None for none.
        texts: Receives the text.
    """

    needs_examples: ClassVar[bool] = True

    def __init__(
        self, slots: Slots, recorded: RecordedText, edit: tuple[int, int] | None, texts: GeneratedTexts
    ) -> None:
        self.slots, self.recorded, self.edit, self.texts = slots, recorded, edit, texts
        self.metrics: list[SummedMetric[Any]] = []

    def check(self, batch: LoadedBatch[Any], key: str, *, trains: bool) -> None:
        """Nothing: the use ``generation`` was checked."""

    def update(self, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Generate the text if its row is in the batch."""
        recorded, writer = self.recorded, self.texts.writer
        if recorded.row not in batch.places:
            return
        assert batch.examples is not None
        assert writer is not None
        index = list(batch.places).index(recorded.row)
        predictor = cast("Callable[..., Prediction]", self.slots.predictor)  # "full" extends the Protocol
        started = synchronised_time(batch.seeds.device)
        found = predictor(network, batch.batch, batch.seeds, trace=self.slots.trace)
        self._check_repeated(self._states(found, index))
        if self.edit is not None:
            found = self._with_edit(network, batch, UserEdit(index, recorded.step, *self.edit))
        spent = costs(found, synchronised_time(batch.seeds.device) - started)
        generation = decode(found, batch.examples, self.slots.tokenizer)[index]
        record = {**{name: values[index].item() for name, values in spent.items()}, **generation}
        writer.predictions.write(recorded.loader, [recorded.row], [record])
        frames = [Frame.of(state, self.slots.tokenizer) for state in self._states(found, index)]
        writer.traces[recorded.loader] = [TracedText(recorded.row, generation, frames)]

    def _states(self, found: Prediction, index: int) -> list[State]:
        assert found.trace is not None
        length = int(found.lengths[index])
        return list(replay(found.trace, index, mask_id=self.slots.tokenizer.mask_id, length=length))

    def _check_repeated(self, states: Sequence[State]) -> None:
        """Require the recorded steps."""
        step = self.recorded.step
        repeated = [
            (state.step, edit.kind, edit.position, edit.token)
            for state in states
            for edit in state.edits
            if state.step <= step
        ]
        if repeated == self.recorded.edits:
            return
        pairs = zip([*repeated, None], [*self.recorded.edits, None], strict=False)
        differing = next(pair for pair in pairs if pair[0] != pair[1])
        at = min(edit[0] for edit in differing if edit is not None)
        raise XLMError(
            f"fork: {self.recorded.where} is not repeated: step {at} differs. The text needs the seed, the "
            "weights, the sampler and the batch size that it was generated with"
        )

    def _with_edit(self, network: nn.Module, batch: LoadedBatch[Any], edit: UserEdit) -> Prediction:
        """Generate with an edit.

        Raises:
            XLMError: If the predictor takes none, or not this one.
        """
        predictor = self.slots.predictor
        name = f"{type(predictor).__module__}.{type(predictor).__qualname__}"
        if not hasattr(predictor, "fork"):
            raise XLMError(f"fork_edit: {name} has no method fork, so its text can only be repeated")
        try:
            return cast("_Forking", predictor).fork(network, batch.batch, batch.seeds, edit)
        except ValueError as error:
            raise XLMError(f"fork_edit: {name}: {error}") from error


class _Forking(Protocol):
    """A predictor that takes an edit of the user."""

    def fork(self, model: nn.Module, batch: object, seeds: Tensor, edit: UserEdit, /) -> Prediction:
        """Generate with an edit and the same noise; a ValueError states why it cannot."""
        ...
