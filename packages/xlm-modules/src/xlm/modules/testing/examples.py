"""Examples of every kind, made from the family's own ordinary ids, and batches as the suite changes them."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from xlm.modules.records import Example
from xlm.modules.testing.parts import to_list

Batch = TypeVar("Batch", bound=Mapping[str, object])
Kind = Literal["language_modelling", "prefix", "infilling", "unconditional"]
Edge = Literal["no_ids", "prompt_only", "empty_target", "single_token", "full_length", "all_fixed"]

KIND_OF_EDGE: dict[Edge, Kind] = {
    "no_ids": "unconditional",
    "prompt_only": "prefix",
    "empty_target": "prefix",
    "single_token": "prefix",
    "full_length": "prefix",
    "all_fixed": "infilling",
}
"""What a family must be able to do for the edge case to concern it."""


def make_example(kind: Kind, ordinary_ids: Sequence[int], *, seed: int, target: int) -> Example:
    """An example with a target of the given length; of unconditional generation, without a target."""
    generator = torch.Generator().manual_seed(seed)

    def draw(number: int) -> Tensor:
        return torch.tensor(ordinary_ids)[torch.randint(len(ordinary_ids), (number,), generator=generator)]

    example: Example = {"seed": seed}
    if kind != "unconditional":
        example["target_ids"] = draw(target)
    if kind == "prefix":
        example["prompt_ids"] = draw(seed % 4 + 1)
    if kind == "infilling":
        example["fixed"] = torch.rand(target, generator=generator) < 0.5
    return example


def make_examples(kind: Kind, ordinary_ids: Sequence[int], max_length: int) -> list[Example]:
    """Examples of several lengths, the longest neither first nor last."""
    lengths = (3, max_length, 2, max_length - 1, 1)
    return [
        make_example(kind, ordinary_ids, seed=10 + row, target=length) for row, length in enumerate(lengths)
    ]


def make_edge_case(edge: Edge, ordinary_ids: Sequence[int], max_length: int) -> list[Example]:
    """Examples of an edge case, each as it comes from several seeds where there is something to draw."""
    some_ids = torch.tensor(ordinary_ids)[:1].repeat(max_length)
    if edge == "no_ids":
        return [{"seed": 0}]
    if edge == "prompt_only":
        return [{"seed": 0, "prompt_ids": some_ids}]
    if edge == "all_fixed":
        return [{"seed": 0, "target_ids": some_ids, "fixed": torch.ones(max_length, dtype=torch.bool)}]
    # With 16 seeds, noise takes a single token in some rows and spares it in others.
    target = {"empty_target": 0, "single_token": 1, "full_length": max_length}[edge]
    return [make_example("prefix", ordinary_ids, seed=seed, target=target) for seed in range(16)]


def num_target(example: Example) -> int:
    """Tokens of the target."""
    return len(example["target_ids"]) if "target_ids" in example else 0


def num_missing(example: Example) -> int:
    """Tokens of the target that are not given."""
    length = num_target(example)
    return length - int(example["fixed"].sum()) if "fixed" in example else length


def holds_what_is_fixed(ids: list[int], example: Example) -> bool:
    """Whether fixed tokens stand in order, side by side where nothing was missing between them."""
    if "target_ids" not in example or "fixed" not in example:
        return True
    target, fixed = to_list(example["target_ids"]), to_list(example["fixed"])
    # Ids as characters of a text, missing ones as any text.
    parts = (
        re.escape(chr(token)) if is_fixed else ".*" for token, is_fixed in zip(target, fixed, strict=True)
    )
    pattern = re.sub(r"(\.\*)+", ".*", "".join(parts))
    return re.fullmatch(pattern, "".join(map(chr, ids)), re.DOTALL) is not None


def pad(batch: Batch, padding: Mapping[str, int], *, side: Literal["left", "right"]) -> Batch:
    """The batch with three more columns of padding in the tensors that are named."""
    padded = dict(batch)
    shape = next(tensor.shape for key in padding if isinstance(tensor := batch[key], Tensor))
    for key, value in padding.items():
        # A mask that is left out is True everywhere.
        tensor = torch.ones(shape, dtype=torch.bool) if batch[key] is None else cast("Tensor", batch[key])
        columns = tensor.new_full((len(tensor), 3), value)
        padded[key] = torch.cat((columns, tensor) if side == "left" else (tensor, columns), dim=1)
    return cast("Batch", padded)


def without_values(batch: Batch) -> Batch:
    """The batch on the meta device, whose tensors have shapes only."""
    moved = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast("Batch", moved)
