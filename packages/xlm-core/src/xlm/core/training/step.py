"""Loss statistics of a step, read back one step later to avoid a device sync.

Reading a number of the current step would synchronise with the device; that of the previous step is already
copied. So a loss that is not finite is found one step later, while its batches are still in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlm.core.config.errors import XLMError
from xlm.core.data import LoadedBatch
from xlm.core.protocols import LossOutput


class NonFiniteLossError(XLMError):
    """A loss that is NaN or infinite, so the weights after its step are invalid."""

    poisons_weights = True


@dataclass(frozen=True)
class MicroBatch:
    """One batch and the sums of its loss, on the device."""

    index: int
    batch: LoadedBatch[Any]
    sums: Mapping[str, Tensor]


@dataclass
class Window:
    """Sums of the micro-batches since the last optimizer step, on the device, without synchronisation."""

    count: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    micro_batches: list[MicroBatch] = field(default_factory=list[MicroBatch])

    @property
    def num_tokens(self) -> int:
        """Tokens of the examples on this process, without padding."""
        return sum(micro_batch.batch.num_tokens for micro_batch in self.micro_batches)

    def add(self, output: LossOutput, batch: LoadedBatch[Any], batch_index: int) -> None:
        """Add the output of the loss for one micro-batch."""
        count = output.loss_count.detach()
        self.count = count if self.count is None else self.count + count
        sums = {name: value.detach() for name, value in {"loss": output.loss_sum, **output.terms}.items()}
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.micro_batches.append(MicroBatch(batch_index, batch, sums))


@dataclass
class MeanCount:
    """The mean loss count of the steps so far, by which the steps of length bucketing divide.

    Rows of one batch then have similar lengths. Divided by its own count, a batch of short rows would weigh
    as much as one of long rows, so each of its tokens would weigh more; divided by a common number, all
    tokens weigh the same, as in batches of random rows.
    """

    steps: int = 0
    mean: Tensor | float = 0.0
    """On the device of the counts, to avoid a synchronisation."""

    def add(self, count: Tensor) -> Tensor:
        """Include the count of a step; returns the mean including it."""
        self.steps += 1
        self.mean = self.mean + (count - self.mean) / self.steps
        return self.mean

    def state_dict(self) -> dict[str, int | float]:
        """The state for a checkpoint; synchronises with the device."""
        return {"steps": self.steps, "mean": float(self.mean)}


@dataclass(frozen=True)
class _Pending:
    step: int
    window: Window
    numbers: Tensor
    """(3 + sums,) on the CPU: number of processes with a stop request, then over all processes the number of
    tokens, the count, the sum of the loss and those of its terms."""
    arrived: torch.cuda.Event | None


class StepWatch:
    """Checks the numbers of each step before the next step changes the weights."""

    def __init__(self) -> None:
        self.stop_wanted = False
        """Whether any process has a stop request; the same on all of them."""
        self.loss: float | None = None
        """Mean loss of the last checked step, over all processes."""
        self.num_tokens = 0
        """Tokens of all checked steps, over all processes."""
        self._pending: _Pending | None = None

    def watch(self, step: int, window: Window, numbers: Tensor) -> None:
        """Start an asynchronous copy of the numbers to the CPU.

        Args:
            step: The optimizer step, counted from 1.
            window: The micro-batches of the sums.
            numbers: (3 + sums,) on the device: number of processes with a stop request, the number of tokens,
                the count and the sums, the loss first.
        """
        if numbers.is_cuda:
            on_host = torch.empty_like(numbers, device="cpu", pin_memory=True)
            on_host.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._pending = _Pending(step, window, on_host, arrived)
        else:
            self._pending = _Pending(step, window, numbers, None)

    def check(self, folder: Path, rank: int) -> None:
        """Check the last watched step.

        Args:
            folder: Folder in which a batch with a non-finite loss is saved.
            rank: This process.

        Raises:
            NonFiniteLossError: If the loss of that step is not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.arrived is not None:
            pending.arrived.synchronize()
        if not bool(pending.numbers.isfinite().all()):
            raise NonFiniteLossError(_explain(pending, folder, rank))
        wants_to_stop, num_tokens, count, loss_sum = pending.numbers[:4].tolist()
        self.num_tokens += round(num_tokens)
        self.stop_wanted = self.stop_wanted or wants_to_stop > 0
        self.loss = loss_sum / max(count, 1.0)


def _explain(pending: _Pending, folder: Path, rank: int) -> str:
    for micro_batch in pending.window.micro_batches:
        values = {name: float(value) for name, value in micro_batch.sums.items()}
        bad = {name: value for name, value in values.items() if value - value != 0}  # NaN or infinite
        if bad:
            path = folder / f"non-finite-step-{pending.step}-rank-{rank}.pt"
            loaded = micro_batch.batch
            torch.save({"batch": loaded.batch, "seeds": loaded.seeds, "terms": values}, path)
            found = ", ".join(f"{name} = {value}" for name, value in bad.items())
            return (
                f"The loss is not finite in optimizer step {pending.step}, batch {micro_batch.index}: "
                f"{found}. "
                f"The batch is in {path}. debug=anomaly names the operation."
            )
    return f"The loss is not finite in optimizer step {pending.step}, on another process than {rank}."
