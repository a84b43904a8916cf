"""Examples of every kind, made from the family's own ordinary ids."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor

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


class Example(TypedDict):
    """One row of data: token ids without special tokens; the keys present define the task."""

    seed: int
    place: NotRequired[int]
    prompt_ids: NotRequired[Tensor]
    target_ids: NotRequired[Tensor]
    fixed: NotRequired[Tensor]
    segment_ids: NotRequired[Tensor]


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
