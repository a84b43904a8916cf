"""The audit finds nothing in a correct masked diffusion, and each mistake under the claim that it breaks."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.eval import audit
from xlm.eval.auditing import claims
from xlm.eval.auditing.estimates import Estimate, surprise, surprise_limit
from xlm.eval.auditing.language import Language, Posterior, Texts, Vocabulary
from xlm.eval.auditing.report import Report

from . import masked_diffusion as own

QUICK: dict[str, Any] = {"num_draws": 200, "num_samples": 3000}


def audited(**changed: Any) -> Report:
    parts: dict[str, Any] = {
        "loss_fn": own.loss,
        "sample_fn": own.sample,
        "log_prob_fn": own.log_prob,
        "decode_fn": own.decode,
        "num_bytes_fn": own.num_bytes,
    }
    return audit(lambda network: network, **{**parts, **QUICK, **changed})


def test_nothing_is_found_in_a_correct_model() -> None:
    report = audited()
    assert not report.mistakes, report.markdown()
    assert {check.holds for check in report.checks} == {True}
    assert report.error_probability < 1e-4


def squared(number: Tensor, size: Tensor) -> Tensor:
    return (size / number) ** 2


def assumed_bytes(ids: Tensor, lengths: Tensor) -> Tensor:
    return 2 * lengths


def flat(number: Tensor, size: Tensor) -> Tensor:
    return torch.ones_like(number)


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "wrong weight": (claims.TRUTH, {"loss_fn": partial(own.loss, weight=squared)}),
    "flat cross entropy called a bound": (claims.BOUND, {"loss_fn": partial(own.loss, weight=flat)}),
    "mean over masked cells": (claims.PADDING, {"loss_fn": partial(own.loss, over_batch=True)}),
    "padding in the sum": (claims.PADDING, {"loss_fn": partial(own.loss, padding_counts=True)}),
    "target visible to the network": (claims.BOUND, {"loss_fn": partial(own.loss, sees_target=True)}),
    "bits called nats": (claims.TRUTH, {"loss_fn": partial(own.loss, unit=1 / math.log(2))}),
    "label smoothing": (claims.MINIMISER, {"loss_fn": partial(own.loss, smoothing=0.3)}),
    "batch modified": (claims.INPUT, {"loss_fn": partial(own.loss, in_place=True)}),
    "first-index ties": (claims.SAMPLER, {"sample_fn": partial(own.sample, order_levels=2)}),
    "float32 Gumbel": (claims.NOISE, {"sample_fn": partial(own.sample, dtype=torch.float32)}),
    "argmax in the last step": (claims.SAMPLER, {"sample_fn": partial(own.sample, last_is_argmax=True)}),
    "temperature of the sampler alone": (claims.SAMPLER, {"sample_fn": partial(own.sample, temperature=0.7)}),
    "MASK drawn as a token": (claims.TOKENS, {"sample_fn": partial(own.sample, with_mask=True)}),
    "MASK in the softmax": (claims.SUM, {"log_prob_fn": partial(own.log_prob, with_mask=True)}),
    "order by the drawn token": (claims.SUM, {"log_prob_fn": partial(own.log_prob, drawn_token=True)}),
    "assumed bytes per token": (claims.BYTES, {"num_bytes_fn": assumed_bytes}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    claim, changed = MISTAKES[mistake]
    report = audited(**changed)
    assert claim in {check.claim.partition(" (")[0] for check in report.mistakes}, report.markdown()


# ---- autoregressive code: exact, and its length is part of the text ---------------------------------------


def nll_of_prefixes(
    network: Callable[[Tensor], Tensor], ids: Tensor, lengths: Tensor, *, with_end: bool = True
) -> Tensor:
    logits = network(ids).clone()
    logits[..., [0, 1]] = -math.inf
    targets = torch.nn.functional.pad(ids, (0, 1), value=2)
    targets = torch.where(targets == 0, 2, targets)
    cost = -logits.log_softmax(-1).gather(2, targets.unsqueeze(2)).squeeze(2)
    counted = torch.arange(ids.shape[1] + 1) < lengths.unsqueeze(1) + with_end
    return torch.where(counted, cost, 0.0).sum(1)


@pytest.mark.parametrize("with_end", [True, False])
def test_an_end_that_is_not_scored_is_found(with_end: bool) -> None:
    report = audit(
        lambda network: network,
        partial(nll_of_prefixes, with_end=with_end),
        order="prefix",
        models_length=True,
        lengths=(0, 1, 2),
        num_draws=2,
    )
    found = {check.claim.partition(" (")[0] for check in report.mistakes}
    assert {claims.BOUND, claims.TRUTH} <= found if not with_end else not found
    exact = next(check for check in report.checks if check.claim == claims.TRUTH)
    assert "±" not in exact.measured, "nothing is drawn, so nothing is estimated"


def test_a_loss_of_another_shape_is_reported() -> None:
    with pytest.raises(ValueError, match=r"nats of each row, \(18,\), but it returned \(\)"):
        audit(lambda network: network, lambda network, ids, lengths: torch.zeros(()))


# ---- the parts --------------------------------------------------------------------------------------------


def test_the_true_network_gives_the_posterior() -> None:
    language = Language.draw(Vocabulary(), [3], seed=1)
    texts = language.texts.ids.tolist()
    state = [3, 1, 5]
    mass = [0.0] * 6
    for text, p in zip(texts, language.probabilities.tolist(), strict=True):
        if text[0] == 3 and text[2] == 5:
            mass[text[1]] += p
    found = Posterior(language, order="masked")(torch.tensor([state]))[0, 1].exp()
    torch.testing.assert_close(found, torch.tensor(mass, dtype=torch.float64) / sum(mass))


def test_the_true_network_of_prefixes_multiplies_to_the_language() -> None:
    language = Language.draw(Vocabulary(), [0, 1, 2], seed=2)
    nll = nll_of_prefixes(Posterior(language, order="prefix"), language.texts.ids, language.texts.lengths)
    torch.testing.assert_close((-nll).exp(), language.probabilities)


def tail(number: int, chance: float, counts: Sequence[int]) -> float:
    return sum(math.comb(number, k) * chance**k * (1 - chance) ** (number - k) for k in counts)


@pytest.mark.parametrize("chance", [0.003, 0.1, 0.5])
def test_the_test_of_a_count_is_wrong_as_seldom_as_stated(chance: float) -> None:
    number = 400
    counts = torch.arange(number + 1)
    p = torch.full((number + 1,), chance, dtype=torch.float64)
    rejected = surprise(counts, number, p, p) > surprise_limit(1)
    assert 0 < tail(number, chance, counts[rejected].tolist()) <= 1e-6


def test_equal_draws_have_no_error() -> None:
    found = Estimate.of(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]))
    assert found.error.tolist() == [0.0, pytest.approx(1 / math.sqrt(3))]


def test_a_text_may_be_drawn_more_often_than_stated_of_some_paths():
    texts = Texts.every(Vocabulary(), [1])
    stated = Estimate.of(torch.full((len(texts), 2), 0.5 / len(texts)))
    often = torch.full((len(texts),), 1000 // len(texts))
    assert claims.sums_below_one(stated).holds
    assert claims.draws_at_least(often, int(often.sum()), stated, texts).holds
    rare = often.clone()
    rare[0] = 0
    found = claims.draws_at_least(rare, int(rare.sum()), stated, texts)
    assert found.holds is False
    assert found.measured.startswith(f"text {texts.show(0)} in 0 of")
    assert claims.sums_below_one(Estimate(4 * stated.mean, stated.error)).holds is False
