"""What collators read from examples, and networks and losses ask of ids; mistakes are refused in one line."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules.records import Example

IDS = ("prompt_ids", "target_ids")
_NO_IDS = torch.empty(0, dtype=torch.int64)


def check_examples(examples: Sequence[Mapping[str, object]]) -> None:
    """Check that there are examples, and that their ids are tensors of int64 with one axis.

    Raises:
        ValueError: If an example is invalid; names it, its value and what is allowed.
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
        # An int is looked at first: the other question costs microseconds a row.
        if not isinstance(seed, (int, SupportsIndex)):
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


def check_lengths(
    lengths: Sequence[int], limit: int | None, *, name: str = "max_length", what: str = "target tokens"
) -> None:
    """Check that no example is longer than a limit.

    Args:
        lengths: Length of each example.
        limit: The most; None for no limit.
        name: What the limit is called in the config.
        what: What is counted.

    Raises:
        ValueError: If one is too long; names the longest example, its length and the limit.
    """
    longest = max(lengths)
    if limit is not None and longest > limit:
        raise ValueError(
            f"example {lengths.index(longest)} has {longest} {what}, the limit is {name}={limit}: "
            f"leave such examples out, or raise the limit"
        )


def fixed_of(number: int, example: Example, length: int) -> Bool[Tensor, " target"]:
    """Which target tokens of an example are given (infilling): none of them without ``fixed``.

    Args:
        number: Of the example in the batch, for the message.
        example: The example.
        length: Number of its target tokens.

    Raises:
        ValueError: If ``fixed`` does not have one entry for each target token.
    """
    fixed = example.get("fixed")
    if fixed is None:
        return torch.zeros(length, dtype=torch.bool)
    if len(fixed) != length:
        raise ValueError(f"'fixed' of example {number} has {len(fixed)} entries for {length} target tokens")
    return fixed


def segment_ids_of(examples: Sequence[Example]) -> Int64[Tensor, "rows length"] | None:
    """Documents of packed blocks, for rows that consist of their targets.

    Returns:
        Number of the document of each token, -1 at the padding on the right, shape (rows, length); None if no
        example has ``segment_ids``.

    Raises:
        ValueError: If only some examples have them, one has a prompt, or they do not fit its target.
    """
    segments = [example["segment_ids"] for example in examples if "segment_ids" in example]
    if not segments:
        return None
    if len(segments) < len(examples):
        raise ValueError("some examples have 'segment_ids' and some have none: pack all of them")
    for number, (example, segment) in enumerate(zip(examples, segments, strict=True)):
        prompt, target = example.get("prompt_ids", _NO_IDS), example.get("target_ids", _NO_IDS)
        if len(prompt) > 0 or len(segment) != len(target):
            raise ValueError(
                f"example {number} needs one entry of 'segment_ids' for each target token, and no prompt"
            )
    return pad_sequence(segments, batch_first=True, padding_value=-1)


def check_vocabulary(ids: Tensor, vocab_size: int) -> None:
    """Check that ids are of the vocabulary, on the CPU only: elsewhere it would wait for the device.

    Args:
        ids: Ids of any shape.
        vocab_size: Number of ids.

    Raises:
        ValueError: If an id is outside; names the smallest and the largest.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    smallest, largest = (int(value) for value in torch.aminmax(ids))
    if smallest < 0 or largest >= vocab_size:
        raise ValueError(
            f"the ids are between {smallest} and {largest}, those of the vocabulary between 0 and "
            f"{vocab_size - 1} (vocab_size={vocab_size})"
        )
