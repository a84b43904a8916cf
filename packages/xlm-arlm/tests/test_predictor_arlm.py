"""Generation: cached and batched equals recomputed row by row; options, limits, traces."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules import uniform
from xlm.modules.testing import CountingModel, replay, to_list
from xlm_arlm import ARLM, ARLMBeamPredictor, ARLMExample, ARLMPrediction, ARLMPredictor, ARLMPromptCollator

from .plain_distribution import (
    BOS,
    EOS,
    ORDINARY,
    PAD,
    SUPPRESSED,
    LogProbs,
    Text,
    example,
    log_prob,
    log_softmax,
    make_model,
    texts,
    write,
)

PROMPTS: tuple[Text, ...] = ((7, 8, 9, 10, 7), (), (10,), (9, 9, 8), (8, 7), (10, 10, 10, 10))


def predictor(
    *,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> ARLMPredictor:
    return ARLMPredictor(
        pad_id=PAD,
        eos_id=EOS,
        suppressed_ids=SUPPRESSED,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )


def rows_of(prediction: ARLMPrediction) -> list[Text]:
    lengths = to_list(prediction.lengths)
    return [tuple(to_list(ids[:n])) for ids, n in zip(prediction.ids, lengths, strict=True)]


def greedy(log_p: LogProbs, _step: int) -> int:
    return int(log_p.argmax())


def draws(
    seed: int, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Callable[[LogProbs, int], int]:
    """A draw from the filtered distribution by its definition, with the row's uniform number of each step."""

    def choose(log_p: LogProbs, step: int) -> int:
        p = np.exp(log_softmax(log_p / temperature))
        order = np.argsort(-p, kind="stable")[:top_k]
        p_kept = p[order] / p[order].sum()
        if top_p is not None:
            order = order[: int(np.searchsorted(p_kept.cumsum(), top_p)) + 1]
        filtered = np.zeros_like(p)
        filtered[order] = p[order] / p[order].sum()
        number = float(uniform(torch.tensor([seed]), 1, step=step, stream=0))
        return int(np.searchsorted(filtered.cumsum(), number, side="right"))

    return choose


@pytest.mark.parametrize("seed", [0, 3, 6])
def test_cached_greedy_equals_recomputation(collate_prompts: ARLMPromptCollator, seed: int) -> None:
    """Rows padded on the left, rows that end early, rows that reach the limit."""
    model = make_model(seed=seed)
    batch = collate_prompts([example(prompt=prompt) for prompt in PROMPTS])
    prediction = predictor(temperature=0.0)(model, batch, torch.arange(len(PROMPTS)))
    expected = [write(model, [*prompt, BOS], greedy, 6) for prompt in PROMPTS]
    assert rows_of(prediction) == [tokens for tokens, _ in expected]
    assert to_list(prediction.nfe) == [steps for _, steps in expected]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, None, None), (1.5, 3, None), (1.0, None, 0.8), (1.3, 4, 0.7), (2.0, None, 1.0)],
)
def test_cached_sampling_equals_recomputation(
    model: ARLM,
    collate_prompts: ARLMPromptCollator,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    prompts = PROMPTS * 3
    batch = collate_prompts([example(prompt=prompt) for prompt in prompts])
    seeds = torch.arange(len(prompts)) + 1000
    prediction = predictor(temperature=temperature, top_k=top_k, top_p=top_p)(model, batch, seeds)
    expected = [
        write(
            model,
            [*prompt, BOS],
            draws(seed, temperature=temperature, top_k=top_k, top_p=top_p),
            6,
        )
        for prompt, seed in zip(prompts, to_list(seeds), strict=True)
    ]
    assert rows_of(prediction) == [tokens for tokens, _ in expected]
    assert to_list(prediction.nfe) == [steps for _, steps in expected]
    assert len({steps for _, steps in expected}) > 2, "rows must end at different steps"


def test_samples_follow_the_distribution_of_the_network(
    model: ARLM, collate_prompts: ARLMPromptCollator
) -> None:
    """Frequencies of all targets of at most 2 tokens against their probabilities: chi-square statistic."""
    num_rows, limit = 4000, 2
    batch = collate_prompts([example(prompt=[9, 8])] * num_rows)
    prediction = predictor(max_new_tokens=limit)(model, batch, torch.arange(num_rows))
    counts: dict[Text, int] = {}
    for text in rows_of(prediction):
        counts[text] = counts.get(text, 0) + 1
    excluded = [token for token in SUPPRESSED if token != EOS]
    outcomes = {
        text: math.exp(log_prob(model, [9, 8, BOS], text if len(text) == limit else [*text, EOS], excluded))
        for text in texts(ORDINARY, limit)
    }
    assert sum(outcomes.values()) == pytest.approx(1.0)
    assert set(counts) <= set(outcomes)
    chi_square = sum(
        (counts.get(text, 0) - num_rows * p) ** 2 / (num_rows * p) for text, p in outcomes.items()
    )
    degrees = len(outcomes) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


class Says(nn.Module):
    """Always gives the same logits (vocab,), and notes the rows and columns it was shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.shapes: list[tuple[int, int]] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        positions: Tensor,
        cache: object,
    ) -> Tensor:
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        return self.logits.expand(len(positions), -1)


def test_special_tokens_are_never_generated(collate_prompts: ARLMPromptCollator) -> None:
    logits = torch.full((11,), 50.0)
    logits[9] = 0.0
    logits[[7, 8, 10, EOS]] = -50.0
    prediction = predictor()(Says(logits), collate_prompts([example()]), torch.tensor([5]))
    assert rows_of(prediction) == [(9,) * 6]


def test_eos_ends_a_row_though_it_is_listed_as_special(collate_prompts: ARLMPromptCollator) -> None:
    logits = torch.zeros(11)
    logits[EOS] = 100.0
    prediction = predictor()(Says(logits), collate_prompts([example(prompt=[7])]), torch.tensor([5]))
    assert rows_of(prediction) == [()]
    assert prediction.ids.shape == (1, 0)
    assert to_list(prediction.nfe) == [1]


@pytest.mark.parametrize(("max_new_tokens", "length"), [(None, 6), (9, 6), (4, 4), (1, 1), (0, 0)])
def test_limits_keep_what_was_generated(
    collate_prompts: ARLMPromptCollator, max_new_tokens: int | None, length: int
) -> None:
    logits = torch.zeros(11)
    logits[8] = 100.0
    model = Says(logits)
    batch = collate_prompts([example(prompt=[7, 9]), example()])
    prediction = predictor(max_new_tokens=max_new_tokens)(model, batch, torch.tensor([5, 6]))
    assert rows_of(prediction) == [(8,) * length] * 2
    assert to_list(prediction.nfe) == [length, length]
    # The prompts once, then one token of each row at a time.
    assert model.shapes == [(2, 3), *[(2, 1)] * (length - 1)][:length]


@pytest.mark.parametrize(
    "predict",
    [predictor(), ARLMBeamPredictor(pad_id=PAD, eos_id=EOS, suppressed_ids=SUPPRESSED)],
    ids=["sampling", "beam"],
)
def test_each_row_has_its_own_limit(
    collate_prompts: ARLMPromptCollator, predict: ARLMPredictor | ARLMBeamPredictor
) -> None:
    logits = torch.zeros(11)
    logits[8] = 100.0
    batch = collate_prompts(
        [example([9, 9], num_fixed=2), example(prompt=[7]), example([9] * 5, num_fixed=5)]
    )
    prediction = predict(Says(logits), batch, torch.arange(3))
    assert rows_of(prediction) == [(9, 9, 8, 8, 8, 8), (8,) * 6, (9, 9, 9, 9, 9, 8)]
    assert to_list(prediction.nfe) == [4, 6, 1]


def test_fixed_tokens_begin_the_target_and_use_up_its_room(
    model: ARLM, collate_prompts: ARLMPromptCollator
) -> None:
    rows = [
        example([9, 8, 7, 7], prompt=[10, 10], num_fixed=2),
        example([9, 8, 7, 7, 7, 9], num_fixed=6),
        example([9, 8], prompt=[7]),
        example([7, 8, 9, 10], num_fixed=1),
    ]
    prediction = predictor(temperature=0.0)(model, collate_prompts(rows), torch.arange(4), trace=True)
    expected = [
        (9, 8, *write(model, [10, 10, BOS, 9, 8], greedy, 4)[0]),
        (9, 8, 7, 7, 7, 9),
        write(model, [7, BOS], greedy, 6)[0],
        (7, *write(model, [BOS, 7], greedy, 5)[0]),
    ]
    assert rows_of(prediction) == expected
    assert int(prediction.nfe[1]) == 0, "no budget, no evaluation"
    trace = prediction.trace
    assert trace is not None
    assert [tuple(replay(trace, row)) for row in range(4)] == expected
    for row, num_fixed in enumerate([2, 6, 0, 1]):
        steps = to_list(trace.step[trace.row == row])
        assert steps == [0] * num_fixed + list(range(1, len(steps) - num_fixed + 1))
    assert (trace.step.diff() >= 0).all()


def test_finished_rows_leave_the_batch(model: ARLM, collate_prompts: ARLMPromptCollator) -> None:
    counting = CountingModel(model)
    batch = collate_prompts([example(prompt=prompt) for prompt in PROMPTS * 4])
    prediction = predictor()(counting, batch, torch.arange(4 * len(PROMPTS)))
    assert len(set(to_list(prediction.nfe))) > 2
    assert counting.rows == int(prediction.nfe.sum())
    assert counting.calls == int(prediction.nfe.max())


def test_a_bfloat16_network_generates(collate_prompts: ARLMPromptCollator) -> None:
    model = make_model().to(torch.bfloat16)
    batch = collate_prompts([example(prompt=prompt) for prompt in PROMPTS])
    prediction = predictor(top_p=0.9)(model, batch, torch.arange(len(PROMPTS)))
    assert {token for text in rows_of(prediction) for token in text} <= set(ORDINARY)
    assert int(prediction.lengths.max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0 and finite, got -0.1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_k": 0}, "top_k must be None or at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be None or in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ARLMPredictor(pad_id=PAD, eos_id=EOS, **options)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def test_without_eos_a_row_ends_with_its_budget(model: ARLM, collate_prompts: ARLMPromptCollator) -> None:
    """Packed blocks have no EOS: every id is a token like others."""
    examples: list[ARLMExample] = [{"seed": 0}] * 8
    batch = collate_prompts(examples)
    seeds = torch.arange(8)
    with_eos, without = (
        ARLMPredictor(pad_id=PAD, eos_id=eos_id)(model, batch, seeds) for eos_id in (EOS, None)
    )
    assert without.lengths.tolist() == without.nfe.tolist() == [6] * 8
    ended = with_eos.lengths < 6
    assert ended.any()
    for row in ended.nonzero().squeeze(1).tolist():
        length = int(with_eos.lengths[row])
        assert without.ids[row, : length + 1].tolist() == [*with_eos.ids[row, :length].tolist(), EOS]
