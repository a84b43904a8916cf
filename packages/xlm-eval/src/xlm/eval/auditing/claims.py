"""The claims of an audit, as functions of what was measured: the same for slots and for code of others."""

import torch
from torch import Tensor

from xlm.eval.auditing.estimates import (
    DEVIATIONS,
    ROUNDING,
    Estimate,
    Number,
    sum_of_probabilities,
    surprise,
    surprise_limit,
)
from xlm.eval.auditing.language import Language, Texts
from xlm.eval.auditing.report import Check

BOUND = "the loss is an upper bound of -log p"
TRUTH = "the loss of the true network is the entropy"
MINIMISER = "no network has a lower loss than the true one"
ROWS = "the loss of a text does not depend on the other rows"
PADDING = "the loss of a text does not depend on padding"
INPUT = "the inputs are not modified"
SUM = "the sampler's probabilities sum to 1"
SUM_OF_SOME = "the sampler's probabilities, of some paths only, sum to at most 1"
SAMPLER = "the sampler draws from the distribution that its likelihood states"
AT_LEAST = "the sampler draws each text at least as often as stated of some paths"
TOKENS = "generated texts hold tokens of texts only"
NOISE = "tokens are drawn with float64 noise"
BYTES = "bytes are those of the decoded text"


def bound(nll: Estimate, texts: Texts, *, with_length: bool, network: str) -> Check:
    """Kraft's inequality over all texts, or over those of each length."""
    groups = [torch.ones(len(texts), dtype=torch.bool)]
    if not with_length:
        groups = [texts.lengths == length for length in sorted(set(texts.lengths.tolist()))]
    sums = [sum_of_probabilities(Estimate(nll.mean[group], nll.error[group])) for group in groups]
    worst = max(sums, key=lambda found: found.value - found.margin)
    holds = worst.value - worst.margin <= 1
    return Check(
        f"{BOUND} ({network})",
        f"sum of exp(-nll) over texts {worst}, {'at most' if holds else 'above'} 1",
        holds,
    )


def truth(nll: Estimate, language: Language, *, with_length: bool, tolerance: float) -> Check:
    """Compare the loss of the true network with the entropy: below it is no bound, above it is too large."""
    found, entropy = (
        nll.weighted(language.probabilities),
        language.entropy(with_length=with_length),
    )
    margin = found.margin
    below, above = found.value + margin < entropy, found.value - margin > entropy + tolerance
    what = ", below: no bound" if below else ", above: not tight, in other units or of more than the text"
    return Check(
        TRUTH,
        f"{found} nats, entropy {entropy:.6g}{what if below or above else ''}",
        not (below or above),
    )


def minimiser(differences: dict[str, Number]) -> Check:
    """Loss of other networks minus that of the true one, with the same noise."""
    name, worst = min(differences.items(), key=lambda item: item[1].value + item[1].margin)
    holds = worst.value + worst.margin >= 0
    shown = "; ".join(f"{name}: {number}" for name, number in differences.items())
    return Check(MINIMISER, f"loss minus that of the truth, {shown}" if holds else f"{name}: {worst}", holds)


def equal(claim: str, alone: Estimate, together: Estimate, texts: Texts) -> Check:
    """Whether the losses of texts in two batches have the same expectation."""
    difference = (alone.mean - together.mean).abs()
    error = (alone.error.square() + together.error.square()).sqrt()
    excess = difference - DEVIATIONS * error - ROUNDING * alone.mean.abs().clamp(min=1)
    row = int(excess.argmax())
    holds = bool(excess[row] <= 0)
    text = f"{alone.mean[row]:.6g} alone, {together.mean[row]:.6g} with others, text {texts.show(row)}"
    return Check(claim, text, holds)


def sums_to_one(probabilities: Estimate) -> Check:
    """Whether the stated probabilities of all texts sum to 1."""
    found = probabilities.weighted(torch.ones_like(probabilities.mean))
    return Check(SUM, str(found), abs(found.value - 1) <= found.margin)


def sums_below_one(probabilities: Estimate) -> Check:
    """Whether the stated probabilities, each of some of the paths to a text, sum to 1 at most."""
    found = probabilities.weighted(torch.ones_like(probabilities.mean))
    return Check(SUM_OF_SOME, str(found), found.value - 1 <= found.margin)


def draws_at_least(counts: Tensor, number: int, probabilities: Estimate, texts: Texts) -> Check:
    """Whether the texts of a sampler occur as often as stated, or more often."""
    least = probabilities.mean - DEVIATIONS * probabilities.error
    exponent = surprise(counts, number, least, torch.ones_like(least))
    row = int(exponent.argmax())
    holds = bool(exponent[row] <= surprise_limit(len(texts)))
    text = f"text {texts.show(row)} in {int(counts[row])} of {number}, stated {probabilities.mean[row]:.4g}"
    return Check(AT_LEAST, f"no text in {number} is too rare" if holds else text, holds)


def draws_from(counts: Tensor, number: int, probabilities: Estimate, texts: Texts, *, claim: str) -> Check:
    """Whether the texts of a sampler occur as often as stated."""
    margin = DEVIATIONS * probabilities.error
    exponent = surprise(counts, number, probabilities.mean - margin, probabilities.mean + margin)
    row = int(exponent.argmax())
    holds = bool(exponent[row] <= surprise_limit(len(texts)))
    distance = 0.5 * float((counts / number - probabilities.mean).abs().sum())
    text = (
        f"total variation {distance:.3f} in {number} texts"
        if holds
        else f"text {texts.show(row)} in {int(counts[row])} of {number}, stated {probabilities.mean[row]:.4g}"
    )
    return Check(claim, text, holds)


def unmodified(before: Texts, after: Texts, what: str) -> Check:
    """Whether a function left its inputs as they were."""
    same = torch.equal(before.ids, after.ids) and torch.equal(before.lengths, after.lengths)
    return Check(INPUT, f"{what} {'leaves' if same else 'modifies'} its texts", same)
