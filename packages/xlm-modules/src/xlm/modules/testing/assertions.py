"""Assertions on tensors, with a message that shows the difference, and on the likelihood of a sampler."""

import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import pytest
import torch
from torch import Tensor

from xlm.modules.records import Example, FullTrace, SamplerLikelihood, Targets
from xlm.modules.testing.examples import Batch, num_missing, num_target
from xlm.modules.testing.parts import Collator, LossOutput, Prediction, texts_of, to_list


@contextmanager
def no_global_draws(name: str) -> Generator[None]:
    """A block that must not draw from torch's global generator."""
    state = torch.get_rng_state()
    yield
    same = torch.equal(torch.get_rng_state(), state)
    assert same, f"{name} drew from torch's global generator, not from the seeds of the rows"


def assert_same_total(parts: Iterable[LossOutput], whole: LossOutput, name: str) -> None:
    """The sums and counts of some losses add up to those of another."""
    outputs = list(parts)
    assert_close(sum(output.loss_sum for output in outputs), whole.loss_sum, f"{name} loss_sum; they")
    assert_close(sum(output.loss_count for output in outputs), whole.loss_count, f"{name} loss_count; they")


def assert_equal(actual: object, expected: object, name: str) -> None:
    """The same values, bit by bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=lambda found: f"{name} differ.\n{found}")


def assert_close(actual: object, expected: object, name: str, *, rtol: float = 1e-9) -> None:
    """The same values, up to rounding."""

    def message(found: str) -> str:
        return f"{name} differ.\n{found}"

    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol, check_dtype=False, msg=message)


def refused_ids(beyond: int) -> AbstractContextManager[object]:
    """A block that ends in one ValueError, with an id that is not of the vocabulary."""
    return pytest.raises(
        ValueError, match=rf"ids are between .*{beyond}\b.*, those of the vocabulary between"
    )


def assert_adds_probabilities(full: Prediction, plain: Prediction, name: str) -> None:
    """What ``trace="full"`` gives has the edits of a plain trace, and probabilities if the predictor does."""
    assert texts_of(full) == texts_of(plain), f"{name}: other texts if probabilities are recorded"
    edits, others = (_edits(prediction) for prediction in (full, plain))
    assert others <= edits, f"{name}: a full trace lacks {others - edits}"
    if not hasattr(full.trace, "log_prob"):
        return
    trace = cast("FullTrace", full.trace)
    nothing = torch.zeros_like(trace.log_prob)
    for nats in (trace.log_prob, trace.entropy):
        assert_equal(nats.where(trace.step == 0, 0.0), nothing, f"{name}: nats of given tokens, and 0,")
    assert trace.place_log_prob.isfinite().all(), f"{name}: place_log_prob is {trace.place_log_prob}"
    # A token that a sampler without temperature takes has 0.
    is_valid = trace.log_prob.isfinite() & (trace.log_prob < 1e-9) & (trace.entropy > -1e-9)
    assert is_valid.all(), f"{name}: log_prob is {trace.log_prob}, entropy {trace.entropy}"


def _edits(prediction: Prediction) -> set[tuple[int, ...]]:
    trace = prediction.trace
    assert trace is not None
    columns = (trace.step, trace.row, trace.operation, trace.position, trace.token)
    return set(zip(*map(to_list, columns), strict=True))


def assert_scores_texts(
    score: Callable[..., SamplerLikelihood],
    collate: Collator[Batch],
    examples: Sequence[Example],
    prediction: Prediction,
    seeds: Tensor,
    name: str,
) -> None:
    """The likelihood of generated texts only reads its batch, and belongs to each of them.

    Args:
        score: Called with batch, targets, seeds and ``num_draws``.
        collate: Makes the batch.
        examples: What it is made of.
        prediction: Texts of them.
        seeds: (rows,) for the draws of the likelihood.
        name: For messages.
    """
    batch, targets = collate(examples), Targets(ids=prediction.ids, lengths=prediction.lengths)
    before = copy.deepcopy(batch)
    with no_global_draws(f"{name}: the likelihood of the sampler"):
        found = score(batch, targets, seeds, num_draws=2)
    assert_equal(batch, before, f"{name}: the batch after the likelihood of the sampler, and before,")
    assert found.log_weights.shape == (found.num_draws, len(examples)), "log_weights: (draws, examples)"
    assert found.num_draws == (1 if found.nll_kind == "exact" else 2), f"{name}: {found.num_draws} draws"
    mean = found.log_weights.exp().mean(0)
    assert_close(found.nll.neg().exp(), mean, f"{name}: exp(-nll) and the mean weight")
    if found.nll_kind == "exact":
        assert found.nll.isfinite().all(), f"{name}: a generated text is impossible"
    given = [num_target(example) - num_missing(example) for example in examples]
    scored = [length - number for length, number in zip(to_list(targets.lengths), given, strict=True)]
    assert to_list(found.num_tokens) == scored, f"{name}: num_tokens is not that of tokens that are not given"
    for row in (0, len(examples) - 1):  # padded beside the others, not alone
        own = Targets(ids=targets.ids[row : row + 1], lengths=targets.lengths[row : row + 1])
        alone = score(collate([examples[row]]), own, seeds[row : row + 1], num_draws=2)
        assert_close(alone.nll, found.nll[row : row + 1], f"{name}: nll of row {row} alone and together")
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        score(batch, targets, seeds, num_draws=0)
