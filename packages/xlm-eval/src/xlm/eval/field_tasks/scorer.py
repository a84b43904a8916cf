"""Log-probabilities of continuations and generated texts, by the slots of a run, whatever their family.

A context is given in one of two ways: as the beginning of the text (``prefix``: fixed tokens of the target),
for models of plain text, or as the prompt of a row, for models that learnt from prompt to target.

The likelihood is that of the family. Where its loss has a ``prefix_likelihood``, the text may go on behind
the continuation, as the harness defines it. Elsewhere the end of the text is scored too (``models_length``),
or the length is given.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from rich.progress import track
from torch import Tensor, nn

from xlm.core.config.build import make
from xlm.core.config.console import console
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.errors import XLMError
from xlm.core.evaluation.slots import Slots
from xlm.core.protocols import Collator, Example, Likelihood, LikelihoodLoss, Predictor
from xlm.core.training.run import Run
from xlm.core.training.trainer import make_trainer
from xlm.eval.collators import LIKELIHOOD, collator_of
from xlm.eval.field_tasks.answers import Answers
from xlm.eval.field_tasks.requests import Continuation, Start
from xlm.modules import row_seeds

T = TypeVar("T", Continuation, Start)


class PrefixLikelihood(Likelihood, Protocol):
    """-log p of all texts that begin with the target."""

    @property
    def is_greedy(self) -> Tensor:
        """(examples,) whether each token is the most probable one after those on its left."""
        ...


class PrefixLikelihoodLoss(Protocol):
    """A loss whose family can score the beginning of a text."""

    def prefix_likelihood(self, model: nn.Module, batch: Any, /) -> PrefixLikelihood:
        """The likelihood of the targets as beginnings of texts."""
        ...


@dataclass(frozen=True)
class Scored:
    """A scored continuation."""

    log_prob: float
    """Nats; the negative of an upper bound of -log p where the family has no exact value."""
    is_greedy: bool | None
    """Whether greedy decoding writes it; None where a family does not write token by token."""


@dataclass(frozen=True)
class Meaning:
    """What the log-probabilities of a run are."""

    kind: Literal["exact", "upper bound"]
    """Whether -log p is exact or an upper bound."""
    end: Literal["open", "scored", "length given"]
    """Behind the continuation the text may go on, ends, or has as many tokens as it is given."""
    num_draws: int
    """Draws of noise that a value is the mean of."""


@dataclass
class Scorer:
    """The slots of a run and how a context is given to them."""

    run: Run
    slots: Slots
    layout: Literal["prefix", "prompt"]
    max_length: int
    """Most tokens of a text, those of a prefix included."""
    trainer: Any
    """Lightning's, for its device and precision."""
    meaning: Meaning | None = None
    """Of the log-probabilities, once there are some."""
    num_truncated: int = 0
    """Contexts that were cut on the left, since they did not fit."""
    answers: Answers = field(init=False)
    """Those of earlier batches, set once the job has a folder."""
    _collators: dict[str, Collator[Any] | None] = field(default_factory=dict[str, Collator[Any] | None])

    @staticmethod
    def of(run: Run, slots: Slots, layout: Literal["prefix", "prompt"], max_length: int) -> "Scorer":
        """The scorer of loaded slots; moves the network to its device.

        Lengths differ from batch to batch, so the network is not compiled.
        """
        trainer = make_trainer(run, run.folder, with_loggers=False)
        trainer.precision_plugin.convert_module(slots.model).to(trainer.strategy.root_device).eval()
        return Scorer(run, slots, layout, max_length, trainer)

    @property
    def start_ids(self) -> list[int]:
        """What a text without context starts with: the separator of packed documents, if there is no BOS."""
        settings = self.run.settings
        packing = settings.task.packing
        separator = packing.separator_id if packing is not None else None
        has_bos = settings.datamodule.collator.get("bos_id") is not None
        return [] if separator is None or has_bos or self.layout == "prompt" else [separator]

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a text."""
        packing = self.run.settings.task.packing
        separator = packing.separator_id if packing is not None else None
        return {token for token in (self.slots.tokenizer.eos_id, separator) if token is not None}

    @property
    def scores_prefixes(self) -> bool:
        """Whether the family scores the beginning of a text, token by token."""
        return hasattr(self.slots.loss, "prefix_likelihood")

    def log_probs(self, continuations: Sequence[Continuation]) -> list[Scored]:
        """Score each continuation given its context.

        Raises:
            XLMError: If the family has no likelihood, a continuation is too long, or its first token has
                nothing to be conditioned on.
        """
        collate = self.collator(LIKELIHOOD)
        found: list[Scored | None] = [None] * len(continuations)
        for places, batch in self._batches([self._fitted(each) for each in continuations]):
            requests = [[each.context, each.ids, each.document, each.part] for each in batch]
            answer = self.answers.of(requests, partial(self._score, batch, collate))
            self.meaning = Meaning(**answer["meaning"])
            for place, scored in zip(places, answer["scored"], strict=True):
                found[place] = Scored(*scored)
        return cast("list[Scored]", found)

    def generate(
        self, starts: Sequence[Start], *, num_new: int | None, sampling: Mapping[str, Any]
    ) -> list[list[int]]:
        """Continue each context.

        Args:
            starts: The contexts.
            num_new: Most new tokens; None for 256, or half of a text if that is less.
            sampling: Arguments of the predictor that replace those of the config.

        Returns:
            The new tokens of each, without special ones, up to the end of the text.

        Raises:
            XLMError: If no loader generates, or there is no space for so many tokens.
        """
        limit = min(256, self.max_length // 2) if num_new is None else num_new
        if limit >= self.max_length and self.layout == "prefix":
            raise XLMError(
                f"max_gen_toks: got {limit}, but a text has {self.max_length} tokens with its context. Set "
                f"'gen_kwargs={{max_gen_toks: {self.max_length // 2}}}'"
            )
        collate = self.collator(GENERATION)
        predictor: Predictor[Any] = make({**self.run.settings.predictor, **sampling}, "predictor")
        found: list[list[int]] = [[] for _ in starts]
        for places, batch in self._batches([self._shortened(each, limit) for each in starts]):
            requests = [[each.context, each.document, each.part] for each in batch]
            generated = partial(self._continue, batch, collate, predictor, limit)
            answer = self.answers.of([requests, limit, dict(sampling)], generated)
            for place, ids in zip(places, answer["ids"], strict=True):
                found[place] = ids
        return found

    def collator(self, use: str) -> Collator[Any]:
        """The collator of a use.

        Raises:
            XLMError: If no loader has it, or the loss has no likelihood.
        """
        if use not in self._collators:
            self._collators[use] = collator_of(self.run, use, "test")
        collator = self._collators[use]
        if collator is None:
            raise XLMError(f"datamodule.test: no loader has `uses: [{use}]`, so {use} is not defined here")
        if use == LIKELIHOOD and not hasattr(self.slots.loss, "likelihood"):
            raise XLMError(
                f"loss: {type(self.slots.loss).__name__} has no likelihood, so loglikelihood is not defined"
            )
        return collator

    def _score(self, batch: Sequence[Continuation], collate: Collator[Any]) -> dict[str, Any]:
        """Log-probability and greediness of each continuation, and what the former is."""
        examples = [self._example(each.context, each.ids, each.document, each.part) for each in batch]
        likelihood = self._likelihood(self.trainer.strategy.batch_to_device(collate(examples)))
        self._check_counts(likelihood, batch)
        greedy: list[bool | None] = [None] * len(batch)
        if self.scores_prefixes:
            greedy = list(cast("PrefixLikelihood", likelihood).is_greedy.tolist())
        nll = likelihood.nll.tolist()
        return {
            "meaning": asdict(_meaning(likelihood, is_open=self.scores_prefixes)),
            "scored": [[-nats, is_greedy] for nats, is_greedy in zip(nll, greedy, strict=True)],
        }

    def _continue(
        self, batch: Sequence[Start], collate: Collator[Any], predictor: Predictor[Any], limit: int
    ) -> dict[str, Any]:
        """At most ``limit`` new tokens of each row."""
        filling = [self._filler] * min(limit, self.max_length)
        examples = [self._example(each.context, filling, each.document, each.part) for each in batch]
        seeds = torch.tensor(
            [example["seed"] for example in examples], device=self.trainer.strategy.root_device
        )
        with self.trainer.precision_plugin.forward_context(), torch.no_grad():
            prompts = self.trainer.strategy.batch_to_device(collate(examples))
            prediction = predictor(self.slots.model, prompts, seeds)
        found: list[list[int]] = []
        for each, ids, length in zip(
            batch, prediction.ids.tolist(), prediction.lengths.tolist(), strict=True
        ):
            given = len(each.context) if self.layout == "prefix" else 0
            found.append(self._text(ids[given:length][:limit]))
        return {"ids": found}

    def _likelihood(self, batch: Any) -> Likelihood:
        with self.trainer.precision_plugin.forward_context(), torch.no_grad():
            if self.scores_prefixes:
                loss = cast("PrefixLikelihoodLoss", self.slots.loss)
                return loss.prefix_likelihood(self.slots.model, batch)
            return cast("LikelihoodLoss[Any]", self.slots.loss).likelihood(self.slots.model, batch)

    def _check_counts(self, likelihood: Likelihood, batch: Sequence[Continuation]) -> None:
        for counted, each in zip(likelihood.num_tokens.tolist(), batch, strict=True):
            if counted != len(each.ids):
                raise XLMError(
                    f"loglikelihood: {type(self.slots.loss).__name__} scores {counted} of {len(each.ids)} "
                    "tokens of a text without context, since nothing stands before its first: the model "
                    "needs a BOS (datamodule.collator.bos_id) or a separator (task.packing.separator_id)"
                )

    def _fitted(self, each: Continuation) -> Continuation:
        """The continuation with as much of its context as fits."""
        if len(each.ids) > self.max_length:
            raise XLMError(
                f"max_length: a continuation has {len(each.ids)} tokens, and a text {self.max_length}. "
                "Set max_length if the model can read more"
            )
        return self._shortened(each, len(each.ids))

    def _shortened(self, each: T, num_new: int) -> T:
        context = each.context or self.start_ids
        if self.layout == "prefix" and (excess := len(context) + num_new - self.max_length) > 0:
            self.num_truncated += len(each.context) > 0
            context = context[excess:]
        return each.with_context(context)

    def _example(self, context: Sequence[int], target: Sequence[int], document: int, part: int) -> Example:
        """A row; the noise is that of the document and its part, whatever the continuation."""
        seed = int(row_seeds(self.run.settings.seed, part, torch.tensor([document])))
        if self.layout == "prompt":
            return Example(seed=seed, prompt_ids=_tensor(context), target_ids=_tensor(target))
        fixed = torch.arange(len(context) + len(target)) < len(context)
        return Example(seed=seed, target_ids=_tensor([*context, *target]), fixed=fixed)

    @property
    def _filler(self) -> int:
        """A token of texts, in the place of the new ones, of which only the number is read."""
        special = cast("list[int]", self.run.settings.vocab["special_ids"])
        return next(token for token in range(self.slots.tokenizer.vocab_size) if token not in special)

    def _text(self, ids: Sequence[int]) -> list[int]:
        kept: list[int] = []
        special = cast("list[int]", self.run.settings.vocab["special_ids"])
        for token in ids:
            if token in self.end_ids:
                break
            if token not in special:
                kept.append(token)
        return kept

    def _batches(self, requests: Sequence[T]) -> Iterator[tuple[list[int], list[T]]]:
        """Requests of similar length, the longest first, with their places."""
        order = sorted(range(len(requests)), key=lambda place: -requests[place].num_tokens)
        size = self.run.settings.datamodule.batch_size
        starts = range(0, len(order), size)
        shown = track(starts, "rows", console=console, disable=not console.is_terminal, transient=True)
        for start in shown:
            places = order[start : start + size]
            yield places, [requests[place] for place in places]


def _meaning(likelihood: Likelihood, *, is_open: bool) -> Meaning:
    return Meaning(
        kind="exact" if likelihood.nll_kind == "exact" else "upper bound",
        end="open" if is_open else "scored" if likelihood.models_length else "length given",
        num_draws=likelihood.num_draws,
    )


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.int64)
