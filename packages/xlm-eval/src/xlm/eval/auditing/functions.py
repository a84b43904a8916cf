"""The audit of code of others: a loss, and optionally a sampler, as functions of a network."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xlm.eval.auditing import claims
from xlm.eval.auditing.estimates import ERROR_PROBABILITY, Estimate, Number, estimate, in_pieces
from xlm.eval.auditing.language import Language, Posterior, Texts, Vocabulary
from xlm.eval.auditing.noise import CoarseNoise, seeded
from xlm.eval.auditing.report import Check, Report

LossFunction = Callable[[Any, Tensor, Tensor], Tensor]
"""(network, ids (rows, width), lengths (rows,)) -> nats (rows,)."""
SHARPNESS = (0.8, 0.95, 1.05, 1.25)
"""Factors of the logits of networks beside the true one."""


@dataclass(frozen=True)
class _Subject:
    """What is audited."""

    model_fn: Callable[[Posterior], Any]
    loss_fn: LossFunction
    order: Literal["masked", "prefix"]
    models_length: bool
    num_draws: int
    seed: int

    def loss(self, network: Any) -> Callable[[Texts], Tensor]:
        """The loss with a network, with the same noise in each call."""

        def evaluate(texts: Texts) -> Tensor:
            with seeded(self.seed):
                found = self.loss_fn(network, texts.ids.clone(), texts.lengths.clone())
            if found.shape != (len(texts),):
                shape = tuple(found.shape)
                raise ValueError(
                    f"loss_fn must return nats of each row, ({len(texts)},), but it returned {shape}"
                )
            return found

        return evaluate

    def network(self, language: Language, *, sharpness: float = 1.0, disorder: float = 0.0) -> Any:
        """A network of the language, with the signature that the functions call."""
        return self.model_fn(
            Posterior(language, order=self.order, sharpness=sharpness, disorder=disorder, seed=self.seed)
        )

    def nll(self, language: Language, *, disorder: float = 0.0) -> Estimate:
        """Mean loss of each text under a network of the language."""
        loss = self.loss(self.network(language, disorder=disorder))
        parts = [
            estimate(
                loss,
                language.texts[language.texts.lengths == length].narrow(),
                self.num_draws,
            )
            for length in language.lengths
        ]
        return Estimate(torch.cat([part.mean for part in parts]), torch.cat([part.error for part in parts]))


def audit(
    model_fn: Callable[[Posterior], Any],
    loss_fn: LossFunction,
    *,
    sample_fn: Callable[[Any, int], Tensor] | None = None,
    log_prob_fn: LossFunction | None = None,
    decode_fn: Callable[[Sequence[int]], str] | None = None,
    num_bytes_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    vocabulary: Vocabulary | None = None,
    order: Literal["masked", "prefix"] = "masked",
    lengths: Sequence[int] = (2, 3),
    models_length: bool = False,
    num_draws: int = 2000,
    num_samples: int = 20_000,
    tolerance: float = 0.05,
    seed: int = 0,
) -> Report:
    """Check a loss and a sampler against a language whose distribution is known.

    The functions get networks that the audit makes: the true one of a tiny language, and others. Random
    numbers come from torch's global generator, which is seeded before each call.

    Args:
        model_fn: Gives a network the signature that the other functions call. Its argument maps ids
            (rows, cells) to logits (rows, cells, vocabulary), or with ``order="prefix"`` (rows, cells + 1,
            vocabulary), where column i is conditioned on the cells left of it.
        loss_fn: (network, ids, lengths) -> (rows,) nats: what is claimed to be -log p of each row, or an
            upper bound of it, as estimated by one draw of noise.
        sample_fn: (network, rows) -> ids (rows, width), padded on the right: texts of the largest length, or
            of any if ``models_length``.
        log_prob_fn: (network, ids, lengths) -> (rows,) nats: log p of each row under the sampler.
        decode_fn: Ids of a text -> the text.
        num_bytes_fn: (ids, lengths) -> (rows,) bytes that each text is counted with.
        vocabulary: Ids and their roles.
        order: What the logits of a cell are conditioned on.
        lengths: Lengths of the texts of the language.
        models_length: Whether the length of a text is part of its probability.
        num_draws: Draws of noise for each text.
        num_samples: Texts that the sampler draws.
        tolerance: Nats by which the loss of the true network may exceed the entropy.
        seed: Of the language and of all noise.

    Returns:
        Each claim with what was measured.

    Raises:
        ValueError: If a function returns another shape.
    """
    subject = _Subject(model_fn, loss_fn, order, models_length, num_draws, seed)
    language = Language.draw(vocabulary or Vocabulary(), lengths, seed)
    checks = itertools.chain(
        _loss_checks(subject, language, tolerance),
        _batch_checks(subject, language),
        _sampler_checks(subject, language, sample_fn, log_prob_fn, num_samples),
        _byte_checks(language.texts, decode_fn, num_bytes_fn),
    )
    return Report.of(checks, ERROR_PROBABILITY)


def _loss_checks(subject: _Subject, language: Language, tolerance: float) -> Iterator[Check]:
    with_length = subject.models_length
    true = subject.nll(language)
    for name, nll in {
        "true network": true,
        "random network": subject.nll(language, disorder=1.0),
    }.items():
        yield claims.bound(nll, language.texts, with_length=with_length, network=name)
    yield claims.truth(true, language, with_length=with_length, tolerance=tolerance)
    yield claims.minimiser(
        {f"logits times {sharpness}": _difference(subject, language, sharpness) for sharpness in SHARPNESS}
    )


def _difference(subject: _Subject, language: Language, sharpness: float) -> Number:
    """Loss of a network minus that of the true one, text by text with the same noise."""
    other = subject.loss(subject.network(language, sharpness=sharpness))
    true = subject.loss(subject.network(language))
    whole = torch.zeros(())
    error = 0.0
    for length in language.lengths:
        chosen = language.texts.lengths == length
        texts = language.texts[chosen].narrow()
        found = estimate(lambda piece: other(piece) - true(piece), texts, subject.num_draws)
        part = found.weighted(language.probabilities[chosen])
        whole, error = whole + part.value, error + part.error**2
    return Number(float(whole), error**0.5)


def _batch_checks(subject: _Subject, language: Language) -> Iterator[Check]:
    loss = subject.loss(subject.network(language))
    texts, lengths = language.texts, language.lengths
    shortest = texts[texts.lengths == lengths[0]]
    alone = _among(subject, loss, shortest.narrow(), None)
    neighbours = {claims.ROWS: shortest[-1:].narrow()}
    if len(lengths) > 1:
        neighbours[claims.PADDING] = texts[texts.lengths == lengths[-1]][-1:]
    for claim, other in neighbours.items():
        yield claims.equal(claim, alone, _among(subject, loss, shortest, other), shortest)
    given = texts.times(2)
    before = Texts(given.ids.clone(), given.lengths.clone())
    with seeded(subject.seed):
        subject.loss_fn(subject.network(language), given.ids, given.lengths)
    yield claims.unmodified(before, given, "loss_fn")


def _among(subject: _Subject, loss: Callable[[Texts], Tensor], texts: Texts, other: Texts | None) -> Estimate:
    """Mean loss of each text in batches of its own, with as many rows of another text if there is one."""
    values: list[Tensor] = []
    for row in range(len(texts)):
        own = texts[torch.tensor([row])].times(subject.num_draws)
        batch = own
        if other is not None:
            width = int(max(own.lengths.max(), other.lengths.max()))
            more = other.times(subject.num_draws)
            batch = Texts(
                torch.cat([own.ids[:, :width], more.ids[:, :width]]), torch.cat([own.lengths, more.lengths])
            )
        values.append(loss(batch).detach()[: len(own)])
    return Estimate.of(torch.stack(values))


def _sampler_checks(
    subject: _Subject,
    language: Language,
    sample_fn: Callable[[Any, int], Tensor] | None,
    log_prob_fn: LossFunction | None,
    num_samples: int,
) -> Iterator[Check]:
    vocabulary = language.vocabulary
    texts = language.texts
    if not subject.models_length:
        texts = texts[texts.lengths == language.lengths[-1]]
    claims_more = log_prob_fn is not None
    network = subject.network(language, disorder=1.0 if claims_more else 0.0)
    if log_prob_fn is None:
        known = language.probabilities[-len(texts) :]
        stated = Estimate(known / known.sum(), torch.zeros_like(known))
    else:
        score = functools.partial(_probability, log_prob_fn, network, subject.seed)
        stated = estimate(score, texts, subject.num_draws)
        yield claims.sums_to_one(stated)
    if sample_fn is None:
        yield Check(claims.SAMPLER, "no sample_fn", None)
        return
    watch = CoarseNoise()
    with seeded(subject.seed), watch:
        sample_fn(network, 2)
    yield Check(claims.NOISE, watch.found or "no logarithm of coarse noise", watch.found is None)
    with seeded(subject.seed):
        ids = sample_fn(network, num_samples)
    lengths = (ids != vocabulary.pad_id).sum(1)
    index = texts.index_of(ids, lengths)
    lost = int((index < 0).sum())
    text = f"{lost} of {num_samples} hold other ids or have another length"
    yield Check(claims.TOKENS, text, lost == 0)
    counts = torch.bincount(index[index >= 0], minlength=len(texts))
    claim = claims.SAMPLER if claims_more else f"{claims.SAMPLER}: that of the data"
    yield claims.draws_from(counts, num_samples, stated, texts, claim=claim)


def _probability(log_prob_fn: LossFunction, network: Any, seed: int, texts: Texts) -> Tensor:
    with seeded(seed):
        return log_prob_fn(network, texts.ids.clone(), texts.lengths.clone()).exp()


def _byte_checks(
    texts: Texts,
    decode_fn: Callable[[Sequence[int]], str] | None,
    num_bytes_fn: Callable[[Tensor, Tensor], Tensor] | None,
) -> Iterator[Check]:
    if decode_fn is None or num_bytes_fn is None:
        yield Check(claims.BYTES, "no decode_fn or no num_bytes_fn", None)
        return
    found = in_pieces(lambda piece: num_bytes_fn(piece.ids, piece.lengths), texts)
    rows = [ids[:length] for ids, length in zip(texts.ids.tolist(), texts.lengths.tolist(), strict=True)]
    right = torch.tensor([len(decode_fn(ids).encode()) for ids in rows])
    wrong = int((found != right).sum())
    worst = int((found - right).abs().argmax())
    text = f"{found[worst]:g} bytes for {right[worst]} of {texts.show(worst)}" if wrong else "in every text"
    yield Check(claims.BYTES, text, wrong == 0)
