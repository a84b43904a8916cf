"""The Gaussian curriculum: its noise is uniform-state noise, and at temperature 0 its loss is the bound."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm.modules import LogLinear
from xlm_udlm import GaussianCurriculum, UDLMBatch, UDLMCollator, UDLMDiT, UDLMExample, UDLMLoss, UDLMRotary
from xlm_udlm.vocabulary_udlm import CellVocabulary

from .exact_udlm import nelbo, texts
from .networks_udlm import BOS, FIRST, PAD, table_prediction


def vocabulary(k: int) -> CellVocabulary:
    return CellVocabulary(vocab_size=FIRST + k, pad_id=PAD, eos_id=None, suppressed_ids=[BOS])


def curriculum(**changes: Any) -> GaussianCurriculum:
    return GaussianCurriculum(**{"num_rows": 1, **changes})


def collate(k: int, examples: Sequence[UDLMExample], **changes: Any) -> UDLMBatch:
    options: dict[str, Any] = {"pad_id": PAD, "bos_id": BOS, "eos_id": None, "suppressed_ids": [BOS]}
    return UDLMCollator(schedule=LogLinear(), vocab_size=FIRST + k, **options, **changes)(examples)


def alpha_of(mu: float, k: int) -> float:
    """By the trapezoidal rule, which converges exponentially here."""
    y = mu + np.linspace(-12.0, 12.0, 8001)
    phi = np.exp(-((y - mu) ** 2) / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * np.array([math.erfc(-value / math.sqrt(2)) for value in y])
    mean = float((below ** (k - 1) * phi).sum() * (y[1] - y[0]))
    return k / (k - 1) * (mean - 1 / k)


@pytest.mark.parametrize("k", [2, 5, 30_522])
def test_noise_levels_and_their_weights(k: int) -> None:
    """alpha by another rule, for two tokens in closed form; the weight by differences of alpha."""
    s = torch.tensor([1e-9, 0.3, 1 - 1e-9], dtype=torch.float64)
    found = curriculum().levels(s, torch.tensor([k, k, k]))
    gamma = -3.5 + 1.75 * torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.mu, torch.exp(-gamma / 2), rtol=1e-7, atol=0)
    for mu, noised, weight in zip(
        found.mu.tolist(), found.one_minus_alpha.tolist(), found.weight.tolist(), strict=True
    ):
        alpha = alpha_of(mu, k)
        assert noised == pytest.approx(1 - alpha, rel=1e-9, abs=1e-13)
        if k == 2:
            assert 1 - noised == pytest.approx(math.erf(mu / 2), rel=1e-12)
        # d mu / d gamma = -mu / 2.
        slope = (alpha_of(mu + 1e-4, k) - alpha_of(mu - 1e-4, k)) / 2e-4
        assert weight == pytest.approx(1.75 * mu / 2 * slope / alpha, rel=1e-5, abs=1e-9)


def test_noise_levels_of_the_reference(reference: dict[str, Tensor]) -> None:
    gamma = reference["in.gamma"]
    low, high = gamma.min(), gamma.max()
    gaussian = curriculum(lowest=float(low), highest=float(high))
    for k in (6, 11):
        levels = gaussian.levels((gamma - low) / (high - low), torch.full(gamma.shape, k))
        expected = reference[f"derived.alpha_of_gamma_K{k}"]
        torch.testing.assert_close(1 - levels.one_minus_alpha, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("candidates", [1, 4])
def test_the_largest_entry_is_uniform_state_noise(candidates: int) -> None:
    """P(x_t = v | x) = alpha 1[v = x] + (1 - alpha) / K, however many candidates there are."""
    k, rows, clean = 5, 10_000, FIRST + 3
    gaussian = curriculum(lowest=-1.0, highest=-0.9, candidates=candidates, temperature=0.5)
    number, seeds = torch.full((rows,), k), torch.arange(rows)
    levels = gaussian.levels(torch.full((rows,), 0.5, dtype=torch.float64), number)
    ids = torch.full((rows, 2), clean)
    soft = gaussian.draw(vocabulary(k), seeds, ids, torch.zeros(rows, 2, dtype=torch.bool), levels.mu)
    assert soft.weights is not None
    share = torch.bincount(soft.largest.flatten(), minlength=FIRST + k) / (2 * rows)
    noised = float(levels.one_minus_alpha[0])
    expected = torch.full((FIRST + k,), noised / k)
    expected[:FIRST], expected[clean] = 0.0, 1 - noised + noised / k
    error = 4 * (expected * (1 - expected) / (2 * rows)).sqrt() + 1e-12
    assert ((share - expected).abs() < error).all()
    assert (soft.ids[..., 0] == clean).all()
    assert (soft.ids.sort(dim=-1).values.diff(dim=-1) > 0).all(), "a token stands once"
    assert torch.equal(soft.ids.gather(2, soft.weights.argmax(-1, keepdim=True))[..., 0], soft.largest)


def test_weights_are_those_of_all_coordinates_drawn_one_by_one() -> None:
    """Moments of the clean token's weight and of each other rank; there all tokens are equally likely."""
    k, rows = 5, 10_000
    gaussian = curriculum(lowest=-1.0, highest=-0.9, candidates=4, temperature=0.5)
    levels = gaussian.levels(torch.full((rows,), 0.5, dtype=torch.float64), torch.full((rows,), k))
    soft = gaussian.draw(
        vocabulary(k),
        torch.arange(rows),
        torch.full((rows, 1), FIRST),
        torch.zeros(rows, 1, dtype=torch.bool),
        levels.mu,
    )
    assert soft.weights is not None
    mu = float(levels.mu[0])
    w = np.random.default_rng(0).normal(size=(100_000, k)) + mu * np.eye(k)[0]
    weights = np.exp(w / math.sqrt(1 + mu**2) / 0.5)
    weights = weights / weights.sum(1, keepdims=True)
    others = np.sort(weights[:, 1:], axis=1)[:, ::-1]
    for found, expected in ((soft.weights[:, 0, 0], weights[:, 0]), *zip(soft.weights[:, 0, 1:].T, others.T)):  # noqa: B905
        for power in (1, 2):
            sample = found.numpy() ** power
            error = 4.5 * math.sqrt(sample.var() / rows + (expected**power).var() / len(expected))
            assert abs(sample.mean() - (expected**power).mean()) < error
    for rank in range(1, k):
        share = torch.bincount(soft.ids[:, 0, rank] - FIRST - 1, minlength=k - 1) / rows
        assert ((share - 1 / (k - 1)).abs() < 4 * math.sqrt(0.19 / rows)).all()


@pytest.mark.parametrize("gammas", [(-4.0, 9.0), (-2.0, 0.0)])
def test_at_temperature_0_the_loss_is_the_bound_of_its_noise_levels(gammas: tuple[float, float]) -> None:
    """Nearly all of them, or a part, which is the difference of two integrals."""
    k, text, rows, parts = 3, (2, 0), 20_000, 40
    predict = table_prediction(2, k, seed=1)
    table = torch.tensor(np.array([predict(state, 0.5) for state in texts(2, k)])).log()

    def look_up(ids: Tensor, mask: Tensor | None, noise: Tensor, *, positions: Tensor) -> Tensor:
        logits = table[(ids[:, 1] - FIRST) * k + ids[:, 2] - FIRST]  # (rows, cells, k)
        return torch.cat((logits.new_zeros(len(ids), 2, FIRST), logits), dim=2).flatten(0, 1)

    gaussian = curriculum(num_rows=rows, temperature=0.0, lowest=gammas[0], highest=gammas[1])
    target = FIRST + torch.tensor(text)
    examples: list[UDLMExample] = [
        {"seed": seed, "place": seed, "target_ids": target} for seed in range(rows)
    ]
    loss = UDLMLoss(vocab_size=FIRST + k, pad_id=PAD, eos_id=None, suppressed_ids=[BOS])
    means: list[Tensor] = []
    for part in range(parts):  # not in the order of the stream, in which times are stratified
        batch = collate(k, examples[part::parts], curriculum=gaussian)
        assert "blend_ids" not in batch
        means.append(loss(look_up, batch).loss_sum * parts / rows)
    values = torch.stack(means)
    ends = [1 - alpha_of(math.exp(-gamma / 2), k) for gamma in gammas]
    expected = nelbo(predict, text, k, start=ends[0])
    if gammas[1] < 5:
        expected -= nelbo(predict, text, k, start=ends[1])
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(parts)


def network(kind: type[UDLMDiT] | type[UDLMRotary] = UDLMDiT) -> UDLMDiT | UDLMRotary:
    torch.manual_seed(0)
    model = kind(vocab_size=FIRST + 6, d_model=8, num_layers=1, num_heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.double()


TARGET = FIRST + torch.arange(4)
EXAMPLES: list[UDLMExample] = [
    {
        "seed": row,
        "place": row,
        "prompt_ids": FIRST + torch.arange(row),
        "target_ids": TARGET,
    }
    for row in range(3)
]


def loss_of(model: UDLMDiT | UDLMRotary, batch: UDLMBatch) -> Tensor:
    loss = UDLMLoss(vocab_size=FIRST + 6, pad_id=PAD, eos_id=None, suppressed_ids=[BOS])
    return loss(model, batch).loss_sum


def test_the_limit_of_small_temperatures_is_the_hard_input() -> None:
    """Rows behind the last of the curriculum are those without, the batch beside them as it may be."""
    model = network()
    options = {"lowest": -2.0, "highest": 0.0, "num_rows": 2}
    soft, small, hard = (
        collate(6, EXAMPLES, curriculum=curriculum(temperature=temperature, **options))
        for temperature in (0.3, 1e-9, 0.0)
    )
    assert torch.equal(soft["input_ids"], hard["input_ids"])
    assert "blend_weights" in soft
    assert (soft["blend_weights"].amax(1) < 0.9)[soft["cell_row"] < 2].any()
    torch.testing.assert_close(soft["blend_weights"].sum(1), torch.ones(12))
    torch.testing.assert_close(loss_of(model, small), loss_of(model, hard), rtol=1e-6, atol=0)
    assert not torch.allclose(loss_of(model, soft), loss_of(model, hard), rtol=1e-5)
    plain = collate(6, EXAMPLES)
    for name in ("one_minus_alpha", "weight", "noise", "input_ids"):
        assert torch.equal(soft[name][2], plain[name][2])
        assert not torch.equal(soft[name][:2], plain[name][:2])
    late = collate(6, [{**example, "place": 7} for example in EXAMPLES], curriculum=curriculum(**options))
    assert "blend_ids" not in late


@pytest.mark.parametrize("kind", [UDLMDiT, UDLMRotary])
def test_the_network_averages_embeddings(kind: type[UDLMDiT] | type[UDLMRotary]) -> None:
    """Weights of 1 at one token are that token, and the gradient reaches the embeddings of all of them."""
    model, batch = network(kind), collate(6, EXAMPLES[:1], curriculum=curriculum(temperature=0.5))
    positions = batch["cell_row"] * batch["input_ids"].shape[1] + batch["cell_column"]
    ids = batch["input_ids"].flatten()[positions].unsqueeze(1)
    arguments = batch["input_ids"], None, batch["noise"]
    expected = model(*arguments, positions=positions)
    other = torch.cat((ids, ids * 0 + FIRST), dim=1)
    weights = torch.tensor([1.0, 0.0]).expand(len(ids), 2)
    found = model(*arguments, positions=positions, blend_ids=other, blend_weights=weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    loss_of(model, batch).backward()
    gradient = dict(model.named_parameters())["transformer.embedding.weight"].grad
    assert isinstance(gradient, Tensor)
    assert (gradient[FIRST:].abs().amax(1) > 0).all()


def test_given_tokens_stay_hard() -> None:
    fixed = torch.tensor([True, False, True, False])
    examples: list[UDLMExample] = [{**example, "fixed": fixed} for example in EXAMPLES]
    batch = collate(6, examples, curriculum=curriculum(num_rows=9, lowest=4.0, highest=5.0))
    for row, start in enumerate((1, 2, 3)):
        given = batch["input_ids"][row, start : start + 4][fixed]
        assert torch.equal(given, batch["target_ids"][row, start : start + 4][fixed])
    assert "blend_ids" in batch
    assert len(batch["blend_ids"]) == len(batch["cell_row"]) == 6


def test_what_a_curriculum_cannot_soften_is_refused() -> None:
    ids: dict[str, Any] = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "suppressed_ids": [1]}
    options: dict[str, Any] = {"schedule": LogLinear(), "vocab_size": 9, "target_length": 4} | ids
    options["curriculum"] = curriculum()
    small: dict[str, Any] = {"vocab_size": 4}
    example: UDLMExample = {"seed": 0, "target_ids": torch.tensor([5, 6, 7])}
    UDLMCollator(**options)([example])
    with pytest.raises(ValueError, match="all free cells of a row must have the same possible tokens"):
        UDLMCollator(**options)([{**example, "fixed": torch.tensor([False, True, False])}])
    with pytest.raises(ValueError, match="None where texts have one possible token"):
        UDLMCollator(**(options | small))
    trunk = torch.nn.Module()
    model = network()
    model.transformer = trunk  # type: ignore[assignment]
    with pytest.raises(ValueError, match="does not accept embedded"):
        loss_of(model, collate(6, EXAMPLES, curriculum=curriculum(num_rows=9)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 0}, "num_rows"),
        ({"temperature": -0.1}, "temperature"),
        ({"lowest": 0.0, "highest": 0.0}, "lowest and highest"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curriculum(**changes)
