"""The sampler: its exact distributions by enumeration, its orders against loops, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xlm.modules import take_top
from xlm.modules.samplers import Budget, Confident, RuleName, View, compose
from xlm_mlm import MLMPrediction, MLMPredictor, MLMPromptBatch

from .any_order import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    Prediction,
    TableNetwork,
    assert_drawn_from,
    filled_distribution,
    masks,
    prompt_batch,
    shares,
    total_variation,
)


def predictor(rule: RuleName = "any_order", **options: object) -> MLMPredictor:
    """Options of tokens, and all others of the sampler."""
    settings: dict[str, object] = {"mask_id": MASK, "pad_id": PAD, "eos_id": EOS, "suppressed_ids": [BOS]}
    own = {"eos_id", "temperature", "top_k", "top_p"}
    constants = {name: value for name, value in options.items() if name not in own}
    sampler = compose(rule, stop="filled", **constants)  # pyright: ignore[reportArgumentType]  # constants by name
    settings |= {name: value for name, value in options.items() if name in own}
    return MLMPredictor(sampler=sampler, **settings)  # pyright: ignore[reportArgumentType]  # likewise


def texts(prediction: MLMPrediction) -> list[Cells]:
    rows = zip(prediction.ids.tolist(), prediction.lengths.tolist(), strict=True)
    return [tuple(ids[:length]) for ids, length in rows]


def draw(
    model: nn.Module, batch: MLMPromptBatch, rule: RuleName = "any_order", **options: object
) -> list[Cells]:
    return texts(predictor(rule, **options)(model, batch, torch.arange(len(batch["input_ids"]))))


def network(length: int, num_tokens: int, *, seed: int = 0, scale: float = 1.5) -> TableNetwork:
    return TableNetwork(length=length, vocab_size=FIRST + num_tokens, seed=seed, scale=scale)


def text_prediction(model: TableNetwork) -> Prediction:
    return model.prediction(lambda _: range(FIRST, model.vocab_size))


def test_one_cell_per_step_in_random_order_is_the_any_order_distribution() -> None:
    model = network(3, 3)
    start = (MASK,) * 3
    distribution = filled_distribution(text_prediction(model), start, [1, 1, 1])
    drawn = draw(model, prompt_batch(start, 20000))
    assert_drawn_from(drawn, distribution)
    # The test can tell this distribution from that of another number of steps.
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(drawn, filled_distribution(text_prediction(model), start, [2, 1]))


def test_a_network_that_knows_the_data_generates_it() -> None:
    """Conditionals of a joint distribution: every order has that distribution, also with a given cell."""
    weights = torch.rand(27, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3
    data = {
        (FIRST + i // 9, FIRST + i // 3 % 3, FIRST + i % 3): float(weight / weights.sum())
        for i, weight in enumerate(weights)
    }
    model = network(3, 3)
    with torch.no_grad():
        model.table.fill_(-30)
        for code in range(model.vocab_size**3):
            cells = tuple(code // model.vocab_size**place % model.vocab_size for place in range(3))
            for text, mass in data.items():
                if all(token in (MASK, known) for token, known in zip(cells, text, strict=True)):
                    for place in masks(cells):
                        entry = model.table[code, place + 1, text[place] : text[place] + 1]
                        entry.copy_(torch.logaddexp(entry, torch.tensor(math.log(mass))))
    assert_drawn_from(draw(model, prompt_batch((MASK,) * 3, 20000)), data)
    given = (MASK, FIRST + 1, MASK)
    total = sum(mass for text, mass in data.items() if text[1] == FIRST + 1)
    conditional = {text: mass / total for text, mass in data.items() if text[1] == FIRST + 1}
    assert_drawn_from(draw(model, prompt_batch(given, 20000)), conditional)


def test_parallel_steps_converge_to_the_any_order_distribution() -> None:
    """Each number of steps has its enumerated distribution, and these approach the distribution of one cell
    per step."""
    model = network(4, 2, seed=4, scale=2.0)
    start = (MASK,) * 4
    distributions = {
        steps: filled_distribution(text_prediction(model), start, counts)
        for steps, counts in {1: [4], 2: [2, 2], 3: [2, 1, 1], 4: [1, 1, 1, 1]}.items()
    }
    distances: list[float] = []
    for steps, distribution in distributions.items():
        drawn = draw(model, prompt_batch(start, 10000), num_steps=steps)
        assert_drawn_from(drawn, distribution)
        distances.append(total_variation(shares(drawn), distributions[4]))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.2, "a network too simple to tell the numbers of steps apart"
    assert distances[-1] < 0.03


def test_text_of_a_fixed_width_ends_at_its_first_end() -> None:
    model = network(3, 2)
    start = (MASK,) * 3
    distribution: dict[Cells, float] = {}
    ids = [PAD, EOS, FIRST, FIRST + 1]
    for cells, mass in filled_distribution(model.prediction(lambda _: ids), start, [1, 1, 1]).items():
        ends = [place for place, token in enumerate(cells) if token in (PAD, EOS)]
        text = cells[: min(ends, default=3)]
        distribution[text] = distribution.get(text, 0.0) + mass
    assert_drawn_from(draw(model, prompt_batch(start, 20000, may_end=True)), distribution)


def test_eos_is_a_token_where_none_ends_a_text() -> None:
    model = network(2, 1)
    start = (MASK,) * 2
    distribution = filled_distribution(model.prediction(lambda _: [EOS, FIRST]), start, [1, 1])
    assert_drawn_from(draw(model, prompt_batch(start, 5000), eos_id=None), distribution)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 0.8), (2, None), (None, 0.8)])
def test_temperature_and_filters_act_on_the_tokens(top_k: int | None, top_p: float | None) -> None:
    model = network(2, 4)
    start = (MASK,) * 2

    def reshaped(cells: Cells, place: int) -> dict[int, float]:
        """Temperature 0.7, the top_k most probable, of these the least set with top_p of the mass."""
        plain = text_prediction(model)(cells, place)
        sharp = {token: mass ** (1 / 0.7) for token, mass in plain.items()}
        ranked = sorted(sharp, key=lambda token: -sharp[token])[:top_k]
        total = sum(sharp[token] for token in ranked)
        kept: list[int] = []
        for token in ranked:
            if top_p is not None and sum(sharp[other] for other in kept) / total >= top_p:
                break
            kept.append(token)
        total = sum(sharp[token] for token in kept)
        return {token: sharp[token] / total for token in kept}

    distribution = filled_distribution(reshaped, start, [1, 1])
    drawn = draw(model, prompt_batch(start, 10000), temperature=0.7, top_k=top_k, top_p=top_p)
    assert_drawn_from(drawn, distribution)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_orders_differ(temperature: float) -> None:
    """Top probability, margin and entropy disagree on these cells, at every temperature of the tokens."""
    probabilities = {
        "top_prob": [[0.50, 0.49, 0.01], [0.48, 0.26, 0.26]],
        "entropy": [[0.60, 0.40, 0.00], [0.61, 0.195, 0.195]],
    }
    for order, cells in probabilities.items():
        model = network(2, 3)
        with torch.no_grad():
            for place, masses in enumerate(cells, start=1):
                model.table[:, place, FIRST:] = torch.tensor(masses, dtype=torch.float64).log()
        for other, first in ((order, 0), ("margin", 1)):
            prediction = predictor("confidence", rank=other, temperature=temperature)(
                model, prompt_batch((MASK,) * 2, 1), torch.zeros(1).long(), trace=True
            )
            assert prediction.trace is not None
            assert prediction.trace.position.tolist()[2:] == [first, 1 - first], f"{other} on {order}"


def test_mask_is_never_drawn() -> None:
    """Though it is what the network likes best, at every temperature and in every order."""
    model = network(3, 2)
    with torch.no_grad():
        model.table[..., MASK] = 50.0
    batch = prompt_batch((MASK,) * 3, 200, may_end=True)
    for options in (
        {},
        {"temperature": 0.0},
        {"rule": "confidence", "num_steps": 1},
        {"rule": "low_confidence", "top_k": 1},
        {"rule": "entropy_bound", "gamma": 0.5, "top_p": 0.1},
    ):
        drawn = draw(model, batch, **options)  # pyright: ignore[reportArgumentType]  # a rule among the options
        assert {token for text in drawn for token in text} <= {FIRST, FIRST + 1}


@pytest.mark.parametrize("rank", ["random", "top_prob", "margin", "entropy"])
def test_all_cells_can_be_filled_in_one_call(rank: str) -> None:
    """As many cells as the row has columns at once, BOS aside."""
    model = network(3, 2)
    prediction = predictor("confidence", rank=rank, num_steps=1)(
        model, prompt_batch((MASK,) * 3, 4), torch.arange(4)
    )
    assert model.asked == [12]
    assert prediction.nfe.tolist() == [1] * 4
    assert prediction.lengths.tolist() == [3] * 4


def test_no_call_without_masks() -> None:
    model = network(2, 2)
    prediction = predictor()(model, prompt_batch((FIRST, FIRST + 1), 3), torch.arange(3))
    assert model.asked == []
    assert texts(prediction) == [(FIRST, FIRST + 1)] * 3
    assert prediction.nfe.tolist() == [0] * 3


def mixed_batch() -> MLMPromptBatch:
    """Rows with 1, 3, 0 and 2 masks."""
    starts = [(FIRST, MASK, FIRST), (MASK,) * 3, (FIRST,) * 3, (MASK, FIRST, MASK)]
    parts = [prompt_batch(start, 1) for start in starts]
    return {
        "input_ids": torch.cat([part["input_ids"] for part in parts]),
        "attention_mask": torch.cat([part["attention_mask"] for part in parts]),
        "masked": torch.cat([part["masked"] for part in parts]),
        "may_end": torch.cat([part["may_end"] for part in parts]),
        "target_start": torch.cat([part["target_start"] for part in parts]),
    }


@pytest.mark.parametrize(
    ("num_steps", "nfe", "asked"),
    [
        (None, [1, 3, 0, 2], [3, 2, 1]),
        (100, [1, 3, 0, 2], [3, 2, 1]),
        (2, [1, 2, 0, 2], [4, 2]),
        (1, [1, 1, 0, 1], [6]),
    ],
)
def test_finished_rows_leave(num_steps: int | None, nfe: list[int], asked: list[int]) -> None:
    """No row is evaluated without a mask, and in random order no logits but those of the cells to fill."""
    model = network(3, 2)
    prediction = predictor(num_steps=num_steps)(model, mixed_batch(), torch.arange(4))
    assert prediction.nfe.tolist() == nfe
    assert model.asked == asked


def test_confidence_asks_for_all_masked_cells() -> None:
    model = network(3, 2)
    predictor("confidence", rank="margin")(model, mixed_batch(), torch.arange(4))
    assert model.asked == [6, 3, 1]


def test_draws_belong_to_the_row() -> None:
    model = network(3, 3)
    seeds = torch.tensor([11, 12, 13, 14])
    together = texts(predictor()(model, mixed_batch(), seeds))
    for row in range(4):
        batch = {key: tensor[row : row + 1] for key, tensor in tensors(mixed_batch()).items()}
        assert texts(predictor()(model, batch, seeds[row : row + 1])) == [together[row]]  # pyright: ignore[reportArgumentType]  # same keys
    many = draw(model, prompt_batch((MASK,) * 3, 50))
    assert len(set(many)) > 10, "rows with other seeds are alike"


def tensors(batch: MLMPromptBatch) -> dict[str, Tensor]:
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "masked": batch["masked"],
        "may_end": batch["may_end"],
        "target_start": batch["target_start"],
    }


def test_trace_tells_start_and_steps() -> None:
    model = network(3, 2)
    with torch.no_grad():
        # The middle cell is certain, then the last; the first one ends the text or not.
        model.table.fill_(0.0)
        model.table[:, 2, FIRST] = 9.0
        model.table[:, 3, EOS] = 8.0
        model.table[:, 1, FIRST + 1] = 7.0
    sample = predictor("confidence", temperature=0.0)
    prediction = sample(model, prompt_batch((MASK,) * 3, 1, may_end=True), torch.tensor([0]), trace=True)
    assert texts(prediction) == [(FIRST + 1, FIRST)]
    trace = prediction.trace
    assert trace is not None
    entries = list(
        zip(
            *(field.tolist() for field in (trace.step, trace.operation, trace.position, trace.token)),
            strict=True,
        )
    )
    # The cell of EOS, filled in step 2, is no part of the text.
    assert entries == [(0, 0, 0, MASK), (0, 0, 1, MASK), (1, 1, 1, FIRST), (3, 1, 0, FIRST + 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be None or at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, got -1.0"),
        ({"top_k": 0}, "top_k must be None or at least 1, got 0"),
        ({"top_p": 1.5}, r"top_p must be None or in \(0, 1\], got 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor("any_order", **options)


# Reference vectors


VECTORS = load_file(Path(__file__).parent / "data" / "mlm.safetensors")
MASK_OF_REFERENCE = 2


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_the_budget_of_the_reference(threshold: float) -> None:
    """Its threshold rule by top probability; logits, softmax and all as in the reference, MASK included."""
    before, logits = VECTORS["in.sel.x"], VECTORS["in.logits"].double()
    after = VECTORS[f"xlm.sel.top_prob_thr{threshold}.x.f64"]
    masked = before == MASK_OF_REFERENCE
    view = View(torch.arange(3), 1, masked, masked, logits[masked])
    rank = Confident("top_prob")
    chosen = Budget(threshold, rank.certain).choose(rank.scores(view), view)
    assert torch.equal(torch.where(chosen, logits.argmax(-1), before), after)


def test_best_cells_of_the_reference() -> None:
    mask = VECTORS["in.select.mask"].bool()
    chosen = take_top(VECTORS["in.select.score"], VECTORS["in.select.num_unmask"], mask)
    assert torch.equal(chosen.long(), VECTORS["xlm.select_greedy"])
