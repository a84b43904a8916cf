"""The audit of the slots of a config: collators, loss and predictor, as they are, on a tiny vocabulary."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlm.core.config.entry_points import GENERATION, LOSS
from xlm.core.evaluation.slots import Slots
from xlm.core.protocols import Collator, Example, Likelihood, LikelihoodLoss, LikelihoodPredictor
from xlm.core.training.assembly import make_slots
from xlm.core.training.run import Run
from xlm.eval.auditing import claims
from xlm.eval.auditing.estimates import DEVIATIONS, ERROR_PROBABILITY, ROUNDING, Estimate
from xlm.eval.auditing.language import Language, Texts, Vocabulary
from xlm.eval.auditing.noise import CoarseNoise, seeded
from xlm.eval.auditing.report import Check, Report
from xlm.eval.collators import LIKELIHOOD, collator_of
from xlm.modules import row_seeds
from xlm.modules.records import Targets

ADDITION = "sums and counts of the loss over two batches add up to those over both"
TERMS = "the terms of the loss add up to it"
NUM_TOKENS = "the likelihood counts the tokens of the text"
LEARNT = "the network that minimises the loss is the truth: its likelihood is the entropy"
ROWS_PER_CALL = 4096
LEARNING_RATE = 3e-3
LEARNING_ROWS = 256
"""Least rows of a batch: the noise of few of them hides how low a loss can be."""
ROUGHNESS = 0.2
"""Standard deviation of what is added to each weight: a network that is not almost uniform."""


@dataclass(frozen=True)
class Effort:
    """How much is drawn and learnt."""

    num_draws: int
    """Draws of noise for each text."""
    num_samples: int
    """Texts that the sampler draws."""
    learn_steps: int
    """Optimizer steps on the language; 0: the minimiser is not looked for."""
    tolerance: float
    """Nats by which the likelihood of the learnt network may exceed the entropy."""


@dataclass(frozen=True)
class Subject:
    """The slots and their collators."""

    slots: Slots
    training: Collator[Any]
    likelihood: Collator[Any] | None
    prompts: Collator[Any] | None
    vocabulary: Vocabulary
    max_length: int
    seed: int

    @staticmethod
    def of(run: Run, max_length: int) -> "Subject":
        """The slots of a run whose tokenizer is tiny, with a network in float64."""
        settings, tokenizer = run.settings, run.tokenizer
        slots = make_slots(run)
        slots = replace(slots, model=slots.model.double().eval())
        special_ids = cast("list[int]", settings.vocab["special_ids"])
        vocabulary = Vocabulary(
            size=tokenizer.vocab_size,
            pad_id=cast("int", tokenizer.pad_id),
            mask_id=tokenizer.mask_id,
            eos_id=None,
            other_ids=tuple(special_ids),
        )
        return Subject(
            slots=slots,
            training=cast("Collator[Any]", collator_of(run, LOSS, "train")),
            likelihood=collator_of(run, LIKELIHOOD, "test"),
            prompts=collator_of(run, GENERATION, "test"),
            vocabulary=vocabulary,
            max_length=max_length,
            seed=settings.seed,
        )

    def examples(self, texts: Texts, draw: int = 0, *, place: int | None = None) -> list[Example]:
        """A row for each text, with the seeds of a draw."""
        seeds = row_seeds(self.seed, draw, torch.arange(len(texts))).tolist()
        rows = zip(texts.ids, texts.lengths.tolist(), seeds, strict=True)
        examples = [Example(seed=seed, target_ids=ids[:length].clone()) for ids, length, seed in rows]
        if place is not None:
            for index, example in enumerate(examples):
                example["place"] = place + index
        return examples

    def score(self, model: nn.Module, examples: Sequence[Example]) -> Likelihood:
        """The likelihood of some rows in one batch."""
        assert self.likelihood is not None
        loss = cast("LikelihoodLoss[Any]", self.slots.loss)
        with torch.no_grad():
            return loss.likelihood(model, self.likelihood(examples))

    def nll(self, model: nn.Module, texts: Texts, num_draws: int) -> Estimate:
        """Mean nll of each text over draws."""
        per_call = max(1, ROWS_PER_CALL // len(texts))
        draws: list[Tensor] = []
        for start in range(0, num_draws, per_call):
            examples = [
                example
                for draw in range(start, min(start + per_call, num_draws))
                for example in self.examples(texts, draw)
            ]
            found = self.score(model, examples)
            draws.append(found.nll.view(-1, len(texts)))
            if found.nll_kind == "exact":
                break
        return Estimate.of(torch.cat(draws).T)


def audit_slots(run: Run, *, max_length: int, lengths: Sequence[int], effort: Effort) -> Report:
    """Check the slots of a run whose tokenizer is tiny.

    Args:
        run: The run.
        max_length: The longest text in tokens.
        lengths: Lengths of the texts of the language that a network learns.
        effort: How much is drawn and learnt.
    """
    with seeded(run.settings.seed):
        subject = Subject.of(run, max_length)
        network = _rough(subject.slots.model)
        checks = [
            *_loss_checks(subject, network),
            *_likelihood_checks(subject, network, effort),
            *_sampler_checks(subject, network, effort),
            *_learning_checks(subject, lengths, effort),
        ]
    return Report.of(checks, ERROR_PROBABILITY)


def _rough(model: nn.Module) -> nn.Module:
    rough = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rough.parameters():
            parameter.add_(ROUGHNESS * torch.randn_like(parameter))
    return rough


# ---- the loss ---------------------------------------------------------------------------------------------


def _loss_checks(subject: Subject, network: nn.Module) -> Iterator[Check]:
    texts = Texts.every(subject.vocabulary, range(1, subject.max_length + 1))
    examples = subject.examples(texts)
    half = len(examples) // 3
    loss, collate = subject.slots.loss, subject.training
    batch = collate(examples)
    with torch.no_grad(), _watched(batch) as changed:
        whole = loss(network, batch)
    yield Check(
        claims.INPUT, f"the loss modifies {', '.join(changed)}" if changed else "by the loss", not changed
    )
    with torch.no_grad():
        parts = [loss(network, collate(examples[:half])), loss(network, collate(examples[half:]))]
    pairs = [
        (whole.loss_sum, parts[0].loss_sum + parts[1].loss_sum),
        (whole.loss_count, parts[0].loss_count + parts[1].loss_count),
    ]
    text = "; ".join(f"{both:.8g} and {float(added):.8g}" for both, added in pairs)
    yield Check(ADDITION, text, all(_close(both, added) for both, added in pairs))
    total = torch.stack([term.double() for term in whole.terms.values()]).sum()
    yield Check(
        TERMS,
        f"{float(total):.8g} and {float(whole.loss_sum):.8g}",
        _close(total, whole.loss_sum),
    )


class _watched:  # noqa: N801  # a context manager
    """The names of tensors of a batch that are modified inside the context."""

    def __init__(self, batch: Any) -> None:
        self._batch = cast("Mapping[str, object]", batch if isinstance(batch, Mapping) else vars(batch))
        self._before = {name: value.clone() for name, value in self._tensors()}
        self._changed: list[str] = []

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in self._batch.items() if isinstance(value, Tensor))

    def __enter__(self) -> list[str]:
        return self._changed

    def __exit__(self, *_: object) -> None:
        self._changed += [
            name
            for name, value in self._tensors()
            if name not in self._before or not torch.equal(value, self._before[name])
        ]


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one.double() - other.double()).abs() <= ROUNDING * other.double().abs().clamp(min=1))


# ---- the likelihood ---------------------------------------------------------------------------------------


def _likelihood_checks(subject: Subject, network: nn.Module, effort: Effort) -> Iterator[Check]:
    if subject.likelihood is None or not hasattr(subject.slots.loss, "likelihood"):
        yield Check(claims.BOUND, "no likelihood", None)
        return
    texts = Texts.every(subject.vocabulary, range(subject.max_length + 1))
    examples = subject.examples(texts)
    assert subject.likelihood is not None
    batch = subject.likelihood(examples)
    with torch.no_grad(), _watched(batch) as changed:
        together = cast("LikelihoodLoss[Any]", subject.slots.loss).likelihood(network, batch)
    text = f"the likelihood modifies {', '.join(changed)}" if changed else "by the likelihood"
    yield Check(claims.INPUT, text, not changed)
    counted = torch.equal(together.num_tokens.long(), texts.lengths)
    yield Check(NUM_TOKENS, "in every text" if counted else str(together.num_tokens.tolist()), counted)
    found = _exactly(together.nll)
    alone = torch.cat([subject.score(network, [example]).nll for example in examples])
    yield claims.equal(claims.PADDING, _exactly(alone), found, texts)
    backwards = subject.score(network, examples[::-1]).nll.flip(0)
    yield claims.equal(claims.ROWS, _exactly(backwards), found, texts)
    for name, model in {"new network": subject.slots.model, "random network": network}.items():
        nll = subject.nll(model, texts, effort.num_draws)
        yield claims.bound(nll, texts, with_length=together.models_length, network=name)


def _exactly(values: Tensor) -> Estimate:
    return Estimate(values.double(), torch.zeros(len(values), dtype=torch.float64))


# ---- the sampler ------------------------------------------------------------------------------------------


def _sampler_checks(subject: Subject, network: nn.Module, effort: Effort) -> Iterator[Check]:
    if subject.prompts is None:
        yield Check(claims.SAMPLER, "no loader with `uses: [generation]`", None)
        return
    longest = Texts.every(subject.vocabulary, [subject.max_length])[:1]
    prompts = subject.prompts(subject.examples(longest.times(effort.num_samples)))
    seeds = row_seeds(subject.seed, 1, torch.arange(effort.num_samples))
    watch = CoarseNoise()
    with torch.no_grad(), watch, _watched(prompts) as changed:
        prediction = subject.slots.predictor(network, prompts, seeds)
    text = f"the predictor modifies {', '.join(changed)}" if changed else "by the predictor"
    yield Check(claims.INPUT, text, not changed)
    yield Check(claims.NOISE, watch.found or "no logarithm of coarse noise", watch.found is None)
    texts = Texts.every(subject.vocabulary, range(subject.max_length + 1))
    index = texts.index_of(prediction.ids, prediction.lengths.long())
    lost = int((index < 0).sum())
    text = f"{lost} of {len(index)} hold other ids or are too long"
    yield Check(claims.TOKENS, text, lost == 0)
    counts = torch.bincount(index[index >= 0], minlength=len(texts))
    stated = _stated(subject, network, texts, effort.num_draws)
    if isinstance(stated, str):
        yield Check(claims.SAMPLER, stated, None)
        return
    probabilities, has_all_paths = stated
    if has_all_paths:
        yield claims.sums_to_one(probabilities)
        yield claims.draws_from(counts, len(index), probabilities, texts, claim=claims.SAMPLER)
    else:
        yield claims.sums_below_one(probabilities)
        yield claims.draws_at_least(counts, len(index), probabilities, texts)


def _stated(
    subject: Subject, network: nn.Module, texts: Texts, num_draws: int
) -> tuple[Estimate, bool] | str:
    """The probability of each text under the sampler and whether of all paths to it, or why it has none."""
    predictor = subject.slots.predictor
    if not hasattr(predictor, "likelihood"):
        return "the predictor has no likelihood"
    assert subject.prompts is not None
    score = cast("LikelihoodPredictor[Any]", predictor).likelihood
    longest = Texts.every(subject.vocabulary, [subject.max_length])[:1]
    weights = torch.zeros(len(texts), num_draws, dtype=torch.float64)
    rows = torch.arange(len(texts))
    draws = num_draws
    try:
        # A text of another length than that of the prompt's cells is scored only if the length is drawn.
        models_length = _score(subject, score, network, texts[rows[-1:]], 1, longest).models_length
        if not models_length:
            rows = rows[texts.lengths == subject.max_length]
        found = _score(subject, score, network, texts[rows], draws, longest)
    except ValueError as error:
        return str(error)
    weights[rows, : found.num_draws] = found.log_weights.exp().T
    stated = Estimate.of(weights[:, : found.num_draws])
    has_all_paths: bool = getattr(found, "has_all_paths", True)  # optional
    if found.nll_kind == "exact":
        return stated, has_all_paths
    # Of weights that were 0 in every draw, a positive one may be too rare to have been drawn.
    unseen = math.log(1 / ERROR_PROBABILITY) / DEVIATIONS / num_draws
    is_unseen = torch.zeros(len(texts), dtype=torch.bool)
    is_unseen[rows] = (found.log_weights == -math.inf).all(0)
    return Estimate(stated.mean, stated.error.masked_fill(is_unseen, unseen)), has_all_paths


def _score(
    subject: Subject,
    score: Callable[..., Any],
    network: nn.Module,
    texts: Texts,
    num_draws: int,
    longest: Texts,
) -> Any:
    assert subject.prompts is not None
    batch = subject.prompts(subject.examples(longest.times(len(texts))))
    seeds = row_seeds(subject.seed, 2, torch.arange(len(texts)))
    rows = [ids[:length] for ids, length in zip(texts.ids, texts.lengths.tolist(), strict=True)]
    targets = Targets(ids=pad_sequence(rows, batch_first=True), lengths=texts.lengths)
    with torch.no_grad():
        return score(network, batch, targets, seeds, num_draws=num_draws)


# ---- the minimiser ----------------------------------------------------------------------------------------


def _learning_checks(subject: Subject, lengths: Sequence[int], effort: Effort) -> Iterator[Check]:
    if effort.learn_steps == 0 or subject.likelihood is None:
        yield Check(LEARNT, "no learning" if effort.learn_steps == 0 else "no likelihood", None)
        return
    language = Language.draw(subject.vocabulary, lengths, subject.seed)
    model = _learn(subject, language, effort.learn_steps)
    nll = subject.nll(model, language.texts, effort.num_draws)
    with_length = subject.score(model, subject.examples(language.texts[:1])).models_length
    found = claims.truth(nll, language, with_length=with_length, tolerance=effort.tolerance)
    mean, entropy = nll.weighted(language.probabilities), language.entropy(with_length=with_length)
    if found.holds is False and mean.value > entropy:  # the fault may lie in the learning
        text = f"{mean} nats, entropy {entropy:.6g}: the loss is not tight, or learn_steps are too few"
        found = replace(found, measured=text, holds=None)
    yield replace(found, claim=LEARNT)


def _learn(subject: Subject, language: Language, num_steps: int) -> nn.Module:
    """A network trained on the language, each batch with exactly its distribution."""
    model = copy.deepcopy(subject.slots.model)
    data = language.texts[torch.arange(len(language.texts)).repeat_interleave(language.counts)]
    data = data.times(math.ceil(LEARNING_ROWS / len(data)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    for step in range(num_steps):
        order = row_seeds(subject.seed, step, torch.arange(len(data))).argsort()
        output = subject.slots.loss(
            model, subject.training(subject.examples(data[order], step, place=step * len(data)))
        )
        optimizer.zero_grad()
        (output.loss_sum / output.loss_count.clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
    return model
