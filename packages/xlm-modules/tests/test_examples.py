"""A wrong example is an error of one line; the example of the README runs."""

import re
from pathlib import Path

import pytest
import torch

from xlm.modules import (
    DiT,
    RotaryTransformer,
    check_examples,
    check_lengths,
    fixed_of,
    places_of,
    seeds_of,
    segment_ids_of,
)
from xlm.modules.records import Example

IDS = torch.arange(3)


def test_what_fits_passes() -> None:
    check_examples([{"seed": 0}, {"prompt_ids": IDS, "target_ids": IDS[:0]}])
    seeds = seeds_of([{"seed": -(2**63)}, {"seed": torch.tensor(7)}])
    assert seeds.dtype == torch.int64
    assert seeds.tolist() == [-(2**63), 7]


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (IDS.int(), r"a tensor of int32 with shape \(3,\)"),
        (IDS.double(), r"a tensor of float64 with shape \(3,\)"),
        (IDS.unsqueeze(0), r"a tensor of int64 with shape \(1, 3\)"),
        ([0, 1, 2], "a list"),
        ("abc", "a str"),
    ],
)
@pytest.mark.parametrize("name", ["prompt_ids", "target_ids"])
def test_other_ids_are_refused(name: str, ids: object, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} of example 1 is {found}; ids are a tensor of int64"):
        check_examples([{name: IDS}, {name: ids}])


def test_no_examples_and_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="an empty list of examples"):
        check_examples([])
    with pytest.raises(ValueError, match=r"^example 1 has no seed; the noise of a row comes from its seed"):
        seeds_of([{"seed": 0}, {}])
    with pytest.raises(ValueError, match=r"^example 0 has the seed 0\.5; "):
        seeds_of([{"seed": 0.5}])


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    rotary = RotaryTransformer(vocab_size=8, d_model=8, num_layers=1, num_heads=2)
    dit = DiT(vocab_size=8, d_model=8, num_layers=1, num_heads=2, d_condition=8)
    for ids, found in ((torch.tensor([[0, 8]]), "0 and 8"), (torch.tensor([[-1, 7]]), "-1 and 7")):
        message = rf"the ids are between {found}, those of the vocabulary between 0 and 7 \(vocab_size=8\)"
        with pytest.raises(ValueError, match=message):
            rotary(ids)
        with pytest.raises(ValueError, match=message):
            dit(ids, condition=torch.zeros(1, 8))
    assert rotary(torch.empty((0, 3), dtype=torch.int64)).shape == (0, 3, 8)


def test_places_are_known_where_every_example_has_one() -> None:
    places = places_of([{"seed": 0, "place": 5}, {"seed": 1, "place": 0}])
    assert places is not None
    assert places.tolist() == [5, 0]
    assert places_of([{"seed": 0, "place": 5}, {"seed": 1}]) is None
    assert places_of([]) is None


def test_the_longest_example_is_named_with_the_limit() -> None:
    check_lengths([3, 4], 4)
    check_lengths([3, 9], None)
    with pytest.raises(ValueError, match=r"^example 1 has 5 target tokens, the limit is max_length=3: leave"):
        check_lengths([4, 5], 3)
    with pytest.raises(ValueError, match=r"^example 0 has 1 fixed tokens, the limit is target_length=0"):
        check_lengths([1], 0, name="target_length", what="fixed tokens")


def test_fixed_has_one_entry_for_each_target_token() -> None:
    fixed = torch.tensor([True, False])
    assert fixed_of(0, {"seed": 0, "fixed": fixed}, 2) is fixed
    assert fixed_of(0, {"seed": 0}, 2).tolist() == [False, False]
    with pytest.raises(ValueError, match=r"^'fixed' of example 4 has 2 entries for 3 target tokens"):
        fixed_of(4, {"seed": 0, "fixed": fixed}, 3)


def test_documents_of_packed_blocks_fit_their_targets() -> None:
    def block(*segments: int, prompt: int = 0, target: int | None = None) -> Example:
        length = len(segments) if target is None else target
        return {
            "seed": 0,
            "prompt_ids": torch.zeros(prompt, dtype=torch.int64),
            "target_ids": torch.zeros(length, dtype=torch.int64),
            "segment_ids": torch.tensor(segments),
        }

    found = segment_ids_of([block(0, 0, 1), block(0)])
    assert found is not None
    assert found.tolist() == [[0, 0, 1], [0, -1, -1]]
    assert segment_ids_of([{"seed": 0}]) is None
    with pytest.raises(ValueError, match=r"^some examples have 'segment_ids' and some have none"):
        segment_ids_of([block(0), {"seed": 0}])
    for wrong in (block(0, 1, prompt=1), block(0, 1, target=3)):
        with pytest.raises(ValueError, match=r"^example 1 needs one entry of 'segment_ids' for each target"):
            segment_ids_of([block(0), wrong])


def test_the_example_of_the_readme_runs():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(compile(example, "README.md", "exec"), names)
    masked, real = names["masked"], names["real"]
    assert 0 < int(masked.sum()) < int(real.sum())
    assert torch.equal(names["noisy"][~masked], names["clean"][~masked])
