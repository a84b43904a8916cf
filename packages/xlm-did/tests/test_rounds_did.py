"""The slots of a round against an enumeration of its points, and neighbours that wait for each other."""

import itertools
import math
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch

from xlm.modules.testing import to_list
from xlm_did import DIDExample, DIDPredictor, DIDPromptBatch, DIDPromptCollator
from xlm_did.rounds_did import waiting

from .exact_did import BOS, CLS, PAD, chi_square
from .test_predictor_did import Constant

ROWS = 2000
NEW = 4
GIVEN: tuple[int, ...] = (5, 6, 7, 8)
"""Given tokens, with a slot left of each and one at the end."""
WEIGHTS = (0.36, 0.17, 0.03, 0.2, 0.24)
"""Of the slots. Of six missing tokens these are 2.16, 1.02, 0.18, 1.2, 1.44."""
MISSING = 6
"""The most tokens that are missing."""


def model_of(number: int) -> Constant:
    """A network that says that this number is missing."""
    token_logits = torch.full((ROWS, len(WEIGHTS) + 1, 9), -torch.inf)
    token_logits[:, 1:, NEW] = torch.tensor(WEIGHTS).log()
    # What later rounds read is of no interest.
    later = torch.zeros(ROWS, MISSING, 9)
    return Constant(*(-99.0 for _ in range(number)), 9.0, token_logits=torch.cat([token_logits, later], 1))


def prompts_with_gaps() -> DIDPromptBatch:
    example: DIDExample = {
        "seed": 0,
        "target_ids": torch.tensor(GIVEN),
        "fixed": torch.ones(len(GIVEN)).bool(),
    }
    collate = DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=len(GIVEN) + MISSING)
    prompts = collate([example] * ROWS)
    prompts["open_slots"] = torch.tensor([[False, *(True for _ in WEIGHTS)]] * ROWS)
    return prompts


def first_slots(model: Constant, **options: Any) -> Counter[tuple[int, ...]]:
    """The slots that the first round of each row fills."""
    predictor = DIDPredictor(pad_id=PAD, **options)
    trace = predictor(model, prompts_with_gaps(), torch.arange(ROWS), trace=True).trace
    texts = [list(GIVEN) for _ in range(ROWS)]
    first = trace.step == 1
    for row, position in zip(to_list(trace.row[first]), to_list(trace.position[first]), strict=True):
        texts[row].insert(position, NEW)
    given_before = [list(itertools.accumulate(int(token != NEW) for token in text)) for text in texts]
    return Counter(
        tuple(before for token, before in zip(*pair, strict=True) if token == NEW)
        for pair in zip(texts, given_before, strict=True)
    )


def filled(load: dict[int, float], least: float, *, apart: bool) -> set[int]:
    """The slots with a point that may get a token, by the tokens expected in them."""
    heaviest = max(load.values())
    slots = {slot for slot, expected in load.items() if expected >= min(least, heaviest)}
    light = {slot: load[slot] for slot in slots if load[slot] < 2}
    if not apart or heaviest < 2:
        return slots
    return {
        slot
        for slot in slots
        if slot not in light
        or (light.get(slot - 1, 0.0) < light[slot] and light.get(slot + 1, 0.0) <= light[slot])
    }


def slots_of_a_round(number: int, most: int, least: float, *, apart: bool) -> dict[tuple[int, ...], float]:
    """The slots of n points (v + i) / n in a random order, v uniform, but for those that get none."""
    ends = list(itertools.accumulate(WEIGHTS))
    cuts = sorted({0.0, 1.0, *(number * end % 1 for end in ends[:-1])})
    found: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for low, high in itertools.pairwise(cuts):
        points = [((low + high) / 2 + index) / number for index in range(number)]
        hit = [sum(end <= point for end in ends[:-1]) for point in points]
        allowed = filled({slot: number * WEIGHTS[slot] for slot in hit}, least, apart=apart)
        for order in itertools.permutations(hit):
            chosen = [slot for slot in dict.fromkeys(order) if slot in allowed][:most]
            found[tuple(sorted(chosen))] += (high - low) / math.factorial(number)
    return dict(found)


@pytest.mark.parametrize("number", [4, 6])  # of four no slot lacks two
@pytest.mark.parametrize("most", [None, 1, 2])
@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("insertions", ["one", "apart"])
def test_the_slots_of_a_round_follow_their_exact_distribution(
    insertions: str, least: float, most: int | None, number: int
) -> None:
    limit = len(WEIGHTS) if most is None else most
    expected = slots_of_a_round(number, limit, least, apart=insertions == "apart")
    plain = slots_of_a_round(number, limit, 0.0, apart=False)
    if least > 0 or (insertions == "apart" and number == MISSING):
        assert sum(abs(expected.get(key, 0.0) - plain.get(key, 0.0)) for key in {*expected, *plain}) > 0.02
    found = first_slots(
        model_of(number), insertions=insertions, least_expected=least, insertions_per_step=most
    )
    statistic, freedom = chi_square(found, expected)
    # Mean + 4 standard deviations of the chi-square distribution.
    assert statistic < freedom + 4 * math.sqrt(2 * max(freedom, 1))


def test_a_slot_that_expects_little_gets_the_last_token() -> None:
    """Where no slot expects as many, the one that expects most among those with a point is filled."""
    found = first_slots(model_of(1), insertions="apart", least_expected=1.0)
    assert set(found) == {(slot,) for slot in range(len(WEIGHTS))}


@pytest.mark.parametrize(
    ("expected", "waits"),
    [
        ([1.0, 1.0, 3.0], [0, 1, 0]),
        ([0.5, 1.0, 3.0], [1, 0, 0]),
        ([1.0, 0.0, 1.0], [0, 0, 0]),  # not beside each other
        ([1.9, 2.0, 1.9], [0, 0, 0]),  # the middle one takes further rounds
        ([1.0, 0.5, 1.5, 3.0], [0, 1, 0, 0]),
        ([1.5, 1.0, 0.5, 3.0], [0, 1, 1, 0]),
        ([1.0], [0]),
    ],
)
def test_of_two_light_neighbours_the_lighter_waits(expected: list[float], waits: list[int]) -> None:
    load = torch.tensor([expected], dtype=torch.float64)
    positions = torch.arange(len(expected)).unsqueeze(0)
    assert waiting(load, positions).int().tolist() == [waits]
    # In the order in which tokens were inserted, which is not that of the text.
    order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(3))
    moved = waiting(load[:, order], positions[:, order])
    assert moved.int().tolist() == [[waits[place] for place in order]]


def test_slots_with_given_tokens_between_do_not_wait() -> None:
    load = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64)
    assert not waiting(load, torch.tensor([[1, 3, 4]])).any()
