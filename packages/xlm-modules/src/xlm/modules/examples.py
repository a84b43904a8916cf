"""What every collator asks of its examples, and networks and losses of ids, refused in one line."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Int64
from torch import Tensor

IDS = ("prompt_ids", "target_ids")


def check_examples(examples: Sequence[Mapping[str, object]]) -> None:
    """Check that there are examples, and that their ids are tensors of int64 with one axis.

    Raises:
        ValueError: Naming the example, what it holds and what is wanted.
    """
    if not examples:
        raise ValueError("cannot collate an empty list of examples")
    for number, example in enumerate(examples):
        for name in IDS:
            ids = example.get(name)
            if ids is None:
                continue
            if not isinstance(ids, Tensor):
                found = f"a {type(ids).__name__}"
            elif ids.dtype != torch.int64 or ids.dim() != 1:
                found = f"a tensor of {str(ids.dtype).removeprefix('torch.')} with shape {tuple(ids.shape)}"
            else:
                continue
            raise ValueError(
                f"{name} of example {number} is {found}; ids are a tensor of int64 with one axis"
            )


def seeds_of(examples: Sequence[Mapping[str, object]]) -> Int64[Tensor, " examples"]:
    """The seed of each example, shape (examples,).

    Raises:
        ValueError: If an example has none.
    """
    seeds: list[int] = []
    for number, example in enumerate(examples):
        seed = example.get("seed")
        if not isinstance(seed, SupportsIndex):
            found = "no seed" if seed is None else f"the seed {seed!r}"
            raise ValueError(
                f"example {number} has {found}; the noise of a row comes from its seed, an int "
                "(xlm.modules.row_seeds(...).tolist() makes them)"
            )
        seeds.append(index(seed))
    return torch.tensor(seeds, dtype=torch.int64)


def places_of(examples: Sequence[Mapping[str, object]]) -> Int64[Tensor, " examples"] | None:
    """The place of each example in the training stream, for :func:`xlm.modules.stratified_times`.

    Returns:
        Places, shape (examples,); None if an example has none.
    """
    places = [example["place"] for example in examples if "place" in example]
    return torch.tensor(places) if places and len(places) == len(examples) else None


def check_vocabulary(ids: Tensor, vocab_size: int) -> None:
    """Check that ids are of the vocabulary, on the CPU only: elsewhere it would wait for the device.

    Args:
        ids: Ids of any shape.
        vocab_size: Number of ids.

    Raises:
        ValueError: With the smallest and the largest id.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    smallest, largest = (int(value) for value in torch.aminmax(ids))
    if smallest < 0 or largest >= vocab_size:
        raise ValueError(
            f"the ids are between {smallest} and {largest}, those of the vocabulary between 0 and "
            f"{vocab_size - 1} (vocab_size={vocab_size})"
        )
