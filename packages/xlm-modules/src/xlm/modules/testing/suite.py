"""The conformance suite: tests that hold for every family."""
# ruff: noqa: D102  # names and failure messages describe the tests

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import pytest
import torch
from torch import Tensor, nn

from xlm.modules.records import Example
from xlm.modules.testing.assertions import (
    assert_adds_probabilities,
    assert_close,
    assert_equal,
    assert_same_total,
    assert_scores_texts,
    no_global_draws,
    refused_ids,
)
from xlm.modules.testing.examples import (
    KIND_OF_EDGE,
    Batch,
    Edge,
    Kind,
    holds_what_is_fixed,
    make_edge_case,
    make_examples,
    num_missing,
    num_target,
    pad,
    without_values,
)
from xlm.modules.testing.forks import assert_forks
from xlm.modules.testing.parts import (
    Collator,
    CountingModel,
    LikelihoodLoss,
    Loss,
    Prediction,
    Predictor,
    as_module,
    replay,
    seeds_of_rows,
    texts_of,
    to_list,
)

LossBatch = TypeVar("LossBatch", bound=Mapping[str, object])
PromptBatch = TypeVar("PromptBatch", bound=Mapping[str, object])

_EACH_EDGE = pytest.mark.parametrize("edge", KIND_OF_EDGE)


class ConformanceSuite(Generic[LossBatch, PromptBatch]):
    """Subclass it with a name that pytest collects, and fill in what has no value here."""

    ordinary_ids: ClassVar[Sequence[int]]
    """Ids that texts consist of; anything else in a prediction is an error."""
    pad_id: ClassVar[int]
    """Id that fills the ids of a prediction beyond their lengths."""
    max_length: ClassVar[int]
    """The longest target that the collators of ``build_...`` accept, at least 4."""
    loss_padding: ClassVar[Mapping[str, int]]
    """Keys of the loss's batch whose tensors have shape (rows, length), and what their padding holds. A mask
    may be None in batches without padding."""
    prompt_padding: ClassVar[Mapping[str, int]]
    """The same for the predictor's batch."""
    prompt_padding_side: ClassVar[Literal["left", "right"]] = "right"
    """Where the predictor's batch is padded; that of the loss is padded on the right."""
    kinds: ClassVar[Sequence[Kind]] = ("language_modelling", "prefix", "infilling", "unconditional")
    """What the family can do."""
    refused_by_loss: ClassVar[Sequence[Edge]] = ()
    """Edge cases with nothing to learn from, which a ValueError refuses."""
    refused_by_predictor: ClassVar[Sequence[Edge]] = ()
    """Edge cases with nothing to predict, which a ValueError refuses."""

    def build_model(self) -> nn.Module:
        """A small network without dropout; noise is added to its weights, so it may start with zeros."""
        raise NotImplementedError

    def build_loss(self) -> Loss[LossBatch]:
        """The loss."""
        raise NotImplementedError

    def build_predictor(self) -> Predictor[PromptBatch]:
        """The predictor."""
        raise NotImplementedError

    def build_loss_collator(self, kind: Kind) -> Collator[LossBatch]:
        """The loss's collator, for language modelling, prefix and infilling."""
        raise NotImplementedError

    def build_prompt_collator(self, kind: Kind) -> Collator[PromptBatch]:
        """The predictor's collator, for unconditional generation, prefix and infilling."""
        raise NotImplementedError

    def build_likelihood(self, kind: Kind) -> tuple[LikelihoodLoss[LossBatch], Collator[LossBatch]] | None:
        """A loss and the collator of its likelihood; None if this kind has no likelihood."""
        return None

    # Collators

    def test_loss_collator_only_reads_the_examples(self) -> None:
        for kind in self._loss_kinds():
            self._assert_only_reads(self.build_loss_collator(kind), kind)

    def test_prompt_collator_only_reads_the_examples(self) -> None:
        for kind in self._prompt_kinds():
            self._assert_only_reads(self.build_prompt_collator(kind), kind)

    def test_collators_refuse_too_long_targets(self) -> None:
        for kind in self._loss_kinds():
            examples = make_examples(kind, self.ordinary_ids, self.max_length + 1)
            with pytest.raises(ValueError, match=rf"(?s){self.max_length + 1}.*\b{self.max_length}\b"):
                self.build_loss_collator(kind)(examples)

    # Loss

    def test_collators_refuse_other_ids(self) -> None:
        kind: Kind = next(filter(self._loss_kinds().__contains__, self._prompt_kinds()))
        narrow = self._examples(kind)
        narrow[0]["target_ids"] = torch.tensor(self.ordinary_ids[:1], dtype=torch.int32)
        for collate in (self.build_loss_collator(kind), self.build_prompt_collator(kind)):
            with pytest.raises(ValueError, match="target_ids of example 0 is a tensor of int32"):
                collate(narrow)

    @pytest.mark.parametrize("beyond", [-100, 10**6])
    def test_loss_refuses_ids_beyond_the_vocabulary(self, beyond: int) -> None:
        """Wherever noise leaves them: in the input, or in the targets alone."""
        model, loss = self._model(), self.build_loss()
        for kind in self._loss_kinds():
            collate, scoring = self.build_loss_collator(kind), self.build_likelihood(kind)
            for seed in range(4):
                example: Example = {**self._examples(kind)[0], "seed": seed}
                example["target_ids"] = torch.full((num_target(example),), beyond)
                with refused_ids(beyond):
                    loss(model, collate([example]))
                if scoring is not None:
                    with refused_ids(beyond):
                        scoring[0].likelihood(model, scoring[1]([example]))

    def test_loss_only_reads_the_batch(self) -> None:
        model, loss = self._model(), self.build_loss()
        for kind, batch in self._loss_batches():
            before = copy.deepcopy(batch)
            with no_global_draws(f"{kind}: the loss"):
                first, second = loss(CountingModel(model), batch), loss(as_module(model.forward), batch)
            assert_equal(batch, before, f"{kind}: the batch after the loss, and before,")
            assert_close(first.loss_sum, second.loss_sum, f"{kind}: the losses of two calls")

    def test_loss_is_the_sum_of_its_terms(self) -> None:
        for kind, batch in self._loss_batches():
            output = self.build_loss()(self._model(), batch)
            assert output.loss_sum.shape == output.loss_count.shape == (), "loss_sum, loss_count: scalars"
            assert_close(sum(output.terms.values()), output.loss_sum, f"{kind}: sum of terms and loss_sum")

    def test_loss_adds_up_over_rows(self) -> None:
        """Neighbours, their order and the padding they bring change nothing; micro-batches add up."""
        model, loss = self._model(), self.build_loss()
        for kind, batch in self._loss_batches():
            whole = loss(model, batch)
            collate, examples = self.build_loss_collator(kind), self._examples(kind)
            rows = [loss(model, collate([example])) for example in reversed(examples)]
            assert_same_total(rows, whole, f"{kind}: the rows alone and together have another")
            micro_batches = [loss(model, collate(part)) for part in (examples[:2], examples[2:])]
            assert_same_total(micro_batches, whole, f"{kind}: two micro-batches and one batch have another")

    def test_loss_ignores_padding(self) -> None:
        model, loss = self._model(), self.build_loss()
        for kind, batch in self._loss_batches():
            output = loss(model, pad(batch, self.loss_padding, side="right"))
            assert_same_total(
                [output], loss(model, batch), f"{kind}: with 3 columns of padding there is another"
            )

    @_EACH_EDGE
    def test_loss_in_edge_cases(self, edge: Edge) -> None:
        kind = "language_modelling" if edge == "no_ids" else KIND_OF_EDGE[edge]
        if kind not in self.kinds:
            pytest.skip(f"the family has no {kind}")
        examples = make_edge_case(edge, self.ordinary_ids, self.max_length)
        for rows in (examples, [*examples, self._examples(kind)[0]]):
            if edge in self.refused_by_loss:
                with pytest.raises(ValueError, match=r"\w"):
                    self.build_loss()(self._model(), self.build_loss_collator(kind)(rows))
            else:
                output = self.build_loss()(self._model(), self.build_loss_collator(kind)(rows))
                assert output.loss_sum.isfinite(), f"{edge}: the loss is {output.loss_sum.item()}"

    def test_loss_waits_for_no_device(self) -> None:
        """Who looks at a value waits until the device has computed it. Meta tensors have none to look at."""
        model, loss = self._model().to("meta"), self.build_loss()
        for kind, batch in self._loss_batches():
            try:
                loss(model, without_values(batch)).loss_sum.backward()
            except RuntimeError as error:
                raise AssertionError(f"{kind}: the loss looks at the values of a tensor") from error

    def test_gradients_reach_every_parameter(self) -> None:
        model, loss = self._model(), self.build_loss()
        names, parameters = zip(*model.named_parameters(), strict=True)
        total = torch.stack([loss(model, batch).loss_sum for _, batch in self._loss_batches()]).sum()
        gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
        for name, gradient in zip(names, gradients, strict=True):
            assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
            assert gradient.any(), f"the gradient of {name} is zero: the loss does not depend on it"

    def test_a_readout_gives_what_the_logits_give(self) -> None:
        for kind, batch in self._loss_batches():
            model = self._model()
            parameters = list(model.parameters())
            output = self.build_loss()(model, batch)
            of_logits = self.build_loss()(CountingModel(model), batch)
            assert_close(output.loss_sum, of_logits.loss_sum, f"{kind}: loss with a readout and of logits")
            gradients = (
                torch.autograd.grad(loss.loss_sum, parameters, allow_unused=True)
                for loss in (output, of_logits)
            )
            for mine, other in zip(*gradients, strict=True):
                assert (mine is None) == (other is None), f"{kind}: a weight with one gradient of two"
                if mine is not None and other is not None:
                    assert_close(mine, other, f"{kind}: gradients with a readout and of logits")

    def test_loss_in_lower_precision(self) -> None:
        loss = self.build_loss()
        for kind, batch in self._loss_batches():
            expected = loss(self._model(), batch).loss_sum
            model = self._model(torch.float32)
            assert_close(loss(model, batch).loss_sum, expected, f"{kind}: float32 and float64", rtol=1e-4)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                mixed = loss(model, batch).loss_sum
            assert mixed.dtype in (torch.float32, torch.float64), f"{kind}: autocast sums in {mixed.dtype}"
            assert_close(mixed, expected, f"{kind}: bfloat16 and float64", rtol=0.1)

    def test_likelihood_belongs_to_the_example(self) -> None:
        model = self._model()
        for kind in self._loss_kinds():
            parts = self.build_likelihood(kind)
            if parts is None:
                continue
            (loss, collate), examples = parts, self._examples(kind)
            batch = collate(examples)
            before = copy.deepcopy(batch)
            output = loss.likelihood(CountingModel(model), batch)
            assert_equal(batch, before, f"{kind}: the batch after the likelihood, and before,")
            assert output.nll_kind in ("exact", "bound"), f"nll_kind is {output.nll_kind!r}"
            scored = [num_missing(example) for example in examples]
            assert to_list(output.num_tokens) == scored, f"{kind}: num_tokens is not that of missing tokens"
            alone = [loss.likelihood(model, collate([example])).nll for example in examples]
            assert_close(torch.cat(alone), output.nll, f"{kind}: the nll of examples alone and together")

    # Predictor

    def test_predictor_only_reads_the_batch(self) -> None:
        for kind, batch in self._prompt_batches():
            before = copy.deepcopy(batch)
            with no_global_draws(f"{kind}: the predictor"):
                first = self._predict(batch)
                second = self._predict(batch, model=self._model().forward, trace=True)
            assert_equal(batch, before, f"{kind}: the batch after the prediction, and before,")
            assert first.trace is None, f"{kind}: a trace that was not requested"
            assert texts_of(first) == texts_of(second), f"{kind}: other texts from the same seeds"
            assert_adds_probabilities(self._predict(batch, trace="full"), second, kind)

    def test_prediction_ignores_neighbours(self) -> None:
        """In float64 texts and nfe are independent of the other rows; alone, nfe is the number of calls."""
        for kind, batch in self._prompt_batches():
            collate, examples = self.build_prompt_collator(kind), self._examples(kind)
            seeds = seeds_of_rows(len(examples))
            together = self._predict(batch)
            flipped = self._predict(collate(examples[::-1]), seeds=seeds.flip(0))
            assert texts_of(flipped)[::-1] == texts_of(together), (
                f"{kind}: the order of the rows changes them"
            )
            assert torch.equal(flipped.nfe.flip(0), together.nfe), f"{kind}: the order changes the nfe"
            for row in (0, len(examples) - 1):  # padded beside the others, not alone
                model = CountingModel(self._model())
                alone = self._predict(collate([examples[row]]), model=model, seeds=seeds[row : row + 1])
                assert texts_of(alone)[0] == texts_of(together)[row], (
                    f"{kind}: row {row} is another when alone"
                )
                assert alone.nfe[0] == together.nfe[row], f"{kind}: nfe of row {row} is another when alone"
                calls = getattr(alone, "calls", None)
                for spent in (alone.nfe, alone.nfe if calls is None else calls):
                    assert spent[0] == model.calls, f"{kind}: {model.calls} calls, not {spent[0]}"

    def test_prediction_ignores_padding(self) -> None:
        for kind, batch in self._prompt_batches():
            padded = self._predict(pad(batch, self.prompt_padding, side=self.prompt_padding_side))
            assert texts_of(padded) == texts_of(self._predict(batch)), f"{kind}: padding changes the texts"

    @pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
    def test_predictions_are_well_formed(self, precision: str) -> None:
        """Given tokens in place, no special token, an honest nfe, and a trace that leads to the ids."""
        model = CountingModel(self._model(torch.float64 if precision == "float64" else torch.float32))
        for kind, batch in self._prompt_batches():
            model.calls = model.rows = 0
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                prediction = self._predict(batch, model=model, trace=True)
            self._assert_well_formed(prediction, self._examples(kind), kind)
            spent = to_list(prediction.nfe)
            # Rows may skip different calls, so that there are more of them than any row takes part in.
            assert max(spent) <= model.calls, (
                f"{kind}: {model.calls} calls of the network, but nfe is {spent}"
            )
            assert sum(spent) == model.rows, f"{kind}: {model.rows} rows evaluated, but nfe is {spent}"

    @_EACH_EDGE
    def test_prediction_in_edge_cases(self, edge: Edge) -> None:
        kind = KIND_OF_EDGE[edge]
        if kind not in self.kinds:
            pytest.skip(f"the family has no {kind}")
        examples = make_edge_case(edge, self.ordinary_ids, self.max_length)
        for rows in (examples, [*examples, self._examples(kind)[0]]):
            if edge in self.refused_by_predictor:
                with pytest.raises(ValueError, match=r"\w"):
                    self._predict(self.build_prompt_collator(kind)(rows))
            else:
                prediction = self._predict(self.build_prompt_collator(kind)(rows), trace=True)
                self._assert_well_formed(prediction, rows, edge)

    def test_likelihood_of_the_sampler_belongs_to_the_text(self) -> None:
        predictor: Any = self.build_predictor()
        for kind, batch in self._prompt_batches() if hasattr(predictor, "likelihood") else ():
            score, texts = partial(predictor.likelihood, self._model()), self._predict(batch)
            collate, examples = self.build_prompt_collator(kind), self._examples(kind)
            assert_scores_texts(score, collate, examples, texts, seeds_of_rows(len(examples)), kind)

    def test_an_edit_of_the_user_stays(self) -> None:
        predictor: Any = self.build_predictor()
        for kind, batch in list(self._prompt_batches())[-1:] if hasattr(predictor, "fork") else ():
            fork = partial(predictor.fork, self._model(), batch)
            assert_forks(fork, self._predict(batch, trace=True), self.ordinary_ids, kind)

    # What the tests share

    def _assert_only_reads(self, collate: Collator[Batch], kind: Kind) -> None:
        examples = self._examples(kind)
        before = copy.deepcopy(examples)
        with no_global_draws(f"{kind}: the collator"):
            first, second = collate(examples), collate(examples)
        assert_equal(examples, before, f"{kind}: the examples after collating, and before,")
        assert_equal(first, second, f"{kind}: two batches of the same examples")

    def _assert_well_formed(self, prediction: Prediction, examples: Sequence[Example], name: str) -> None:
        trace = prediction.trace
        assert trace is not None, f"{name}: no trace, though requested"
        assert (trace.step.diff() >= 0).all(), f"{name}: the trace is not in the order of execution"
        for row, (ids, example) in enumerate(zip(texts_of(prediction), examples, strict=True)):
            special = set(ids) - set(self.ordinary_ids)
            assert not special, f"{name}: row {row} holds ids that are not of texts, {special}: {ids}"
            padding = prediction.ids[row, len(ids) :]
            assert (padding == self.pad_id).all(), f"{name}: row {row} is not padded with {self.pad_id}"
            assert replay(trace, row) == ids, f"{name}: the trace of row {row} does not lead to its ids {ids}"
            assert holds_what_is_fixed(ids, example), f"{name}: row {row} is {ids}, but given was {example}"

    def _model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The same network on each call, its weights moved by noise."""
        state = torch.get_rng_state()
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        model = self.build_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        torch.set_rng_state(state)
        return model.to(dtype).eval()

    def _predict(
        self,
        batch: PromptBatch,
        *,
        model: Callable[..., object] | None = None,
        seeds: Tensor | None = None,
        trace: bool | Literal["full"] = False,
    ) -> Prediction:
        rows = len(cast("Tensor", batch[next(iter(self.prompt_padding))]))
        seeds = seeds_of_rows(rows) if seeds is None else seeds
        predictor: Any = self.build_predictor()  # "full" extends the Protocol
        return predictor(as_module(model or self._model()), batch, seeds, trace=trace)

    def _examples(self, kind: Kind) -> list[Example]:
        return make_examples(kind, self.ordinary_ids, self.max_length)

    def _loss_kinds(self) -> list[Kind]:
        return [kind for kind in self.kinds if kind != "unconditional"]

    def _prompt_kinds(self) -> list[Kind]:
        return [kind for kind in self.kinds if kind != "language_modelling"]

    def _loss_batches(self) -> Iterator[tuple[Kind, LossBatch]]:
        for kind in self._loss_kinds():
            yield kind, self.build_loss_collator(kind)(self._examples(kind))

    def _prompt_batches(self) -> Iterator[tuple[Kind, PromptBatch]]:
        for kind in self._prompt_kinds():
            yield kind, self.build_prompt_collator(kind)(self._examples(kind))
