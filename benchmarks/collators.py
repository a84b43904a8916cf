"""CPU time of the training collators per batch on one core, and the size of a batch.

    uv run python benchmarks/collators.py

This is the whole work of a data loader's worker, which sends the batch to the training process. Needs torch
and the families only.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from xlm.modules import LogLinear, row_seeds
from xlm_arlm import ARLMCollator
from xlm_did import DIDCollator
from xlm_editflow import EditFlowCollator
from xlm_flexmdm import FlexMDMCollator, Interpolant
from xlm_ilm import ILMCollator
from xlm_mdlm import MDLMCollator
from xlm_mlm import MLMCollator

ROWS, LENGTH, VOCABULARY, BATCHES, WARM_UP = 32, 1024, 50257, 300, 20
PAD, MASK, BOS, CLS, FIRST = 0, 1, 2, 3, 4


class Row(TypedDict):
    """An example for language modelling."""

    seed: int
    place: int
    target_ids: Tensor


def rows(batch: int) -> list[Row]:
    """The examples of a batch."""
    places = batch * ROWS + torch.arange(ROWS)
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(FIRST, VOCABULARY, (ROWS, LENGTH), generator=generator)
    return [
        {"seed": seed, "place": place, "target_ids": row}
        for seed, place, row in zip(row_seeds(0, 0, places).tolist(), places.tolist(), ids, strict=True)
    ]


Collate = Callable[[Sequence[Row]], Mapping[str, object]]


def size_of(batch: Mapping[str, object]) -> int:
    """Bytes of the tensors of a batch."""
    return sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))


def measure(collate: Collate, batches: int = BATCHES) -> tuple[float, int]:
    """Median CPU milliseconds of a batch, and the bytes of the largest."""
    milliseconds: list[float] = []
    largest = 0
    for batch in range(WARM_UP + batches):
        examples = rows(batch)
        start = time.process_time_ns()
        collated = collate(examples)
        milliseconds.append((time.process_time_ns() - start) / 1e6)
        largest = max(largest, size_of(collated))
    return statistics.median(milliseconds[WARM_UP:]), largest


def training_collators(
    *, pad_id: int = PAD, mask_id: int = MASK, bos_id: int = BOS, cls_id: int = CLS
) -> dict[str, Collate]:
    """The training collator of each family."""
    return {
        "arlm": ARLMCollator(pad_id=pad_id, bos_id=None, eos_id=None),
        "mlm": MLMCollator(pad_id=pad_id, mask_id=mask_id, bos_id=None, eos_id=None),
        "mdlm": MDLMCollator(schedule=LogLinear(), pad_id=pad_id, mask_id=mask_id, bos_id=None, eos_id=None),
        "ilm": ILMCollator(pad_id=pad_id, cls_id=cls_id, bos_id=bos_id),
        "did": DIDCollator(pad_id=pad_id, cls_id=cls_id, bos_id=bos_id),
        "editflow": EditFlowCollator(pad_id=pad_id, bos_id=bos_id),
        "flexmdm": FlexMDMCollator(
            interpolant=Interpolant(insertion=LogLinear(eps=0.0), unmasking=LogLinear(eps=0.0)),
            pad_id=pad_id,
            mask_id=mask_id,
            bos_id=bos_id,
        ),
    }


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(f"{ROWS} rows of {LENGTH} tokens, {BATCHES} batches, torch {torch.__version__}, one thread")
    print(f"{'collator':10}{'ms a batch (median)':>22}{'MB a batch (largest)':>22}")
    for name, collate in training_collators().items():
        milliseconds, size = measure(collate)
        print(f"{name:10}{milliseconds:22.2f}{size / 1e6:22.2f}")


if __name__ == "__main__":
    main()
