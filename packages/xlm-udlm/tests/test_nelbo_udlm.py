"""The integrand F and its gradient: its definition, the authors' forms, and both ends of the time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xlm.modules import cell_loss, linear_cell_loss
from xlm.modules.cell_loss import CellLosses
from xlm_udlm.nelbo_udlm import UniformNELBO
from xlm_udlm.vocabulary_udlm import CellVocabulary

from .exact_udlm import Array, integrand

FIRST, CELLS = 3, 24


def scored(
    logits: Tensor, own: Tensor, target: Tensor, u: float, own_bonus: Tensor | None = None
) -> tuple[CellLosses, UniformNELBO]:
    """F of cells over the tokens FIRST, FIRST + 1, ..., ids below being PAD and suppressed ones."""
    vocabulary = CellVocabulary(
        vocab_size=logits.shape[1], pad_id=0, eos_id=None, suppressed_ids=range(1, FIRST)
    )
    k = logits.shape[1] - FIRST
    bound = UniformNELBO(
        vocabulary,
        own=own,
        target=target,
        one_minus_alpha=torch.full(own.shape, u, dtype=torch.float64),
        weight=torch.full(own.shape, float(k), dtype=torch.float64),
        may_end=torch.zeros_like(own, dtype=torch.bool),
        own_bonus=own_bonus,
    )
    return linear_cell_loss(logits, nn.Identity(), bound), bound


def cells(k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an unsure network, z, and x, which is z at half of the cells."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(CELLS, FIRST + k, generator=generator, dtype=torch.float64)
    own, target = FIRST + torch.randint(k, (2, CELLS), generator=generator)
    return logits, own, target.where(torch.arange(CELLS) % 2 == 0, own)


def closed_form(p: Array, z: int, x: int, alpha: float) -> float:
    """Sums of softplus in the place of the definition; good in the middle of the time."""
    k = len(p)
    softplus = math.log1p(k * alpha / (1 - alpha))
    of_p = np.log1p(k * alpha / (1 - alpha) * p)
    surplus = k / (1 - alpha) * math.exp(-of_p[z]) - 1
    if z == x:
        kappa = (1 - alpha) / (k * alpha + 1 - alpha)
        return surplus - (k - 1) * kappa - kappa * ((k - 1) * softplus + of_p.sum() - k * of_p[z])
    ratio = math.exp(softplus)
    others = of_p.sum() - of_p[x] - (k - 1) * of_p[z]
    return surplus - ratio - (k - 2) + ratio * (softplus - of_p[x] + of_p[z]) - others


@pytest.mark.parametrize("u", [1e-4, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("form", [integrand, closed_form])
def test_f_is_that_of_the_definition_and_of_the_closed_form(
    u: float, form: Callable[[Array, int, int, float], float]
) -> None:
    k = 5
    logits, own, target = cells(k)
    found, bound = scored(logits, own, target, u)
    p = logits[:, FIRST:].softmax(1)
    expected = [
        form(p[cell].numpy(), int(own[cell]) - FIRST, int(target[cell]) - FIRST, 1 - u)
        for cell in range(CELLS)
    ]
    assert found.of_cells.tolist() == pytest.approx(expected, rel=1e-8)
    assert (found.of_cells > 0).all()
    assert bound.log_prob.tolist() == pytest.approx(
        p.log()[torch.arange(CELLS), target - FIRST].tolist(), rel=1e-12
    )
    assert torch.equal(bound.best, FIRST + p.argmax(1))


@pytest.mark.parametrize("u", [1e-3, 0.4, 0.99])
def test_gradients_are_those_of_the_definition(u: float) -> None:
    k = 5
    logits, own, target = cells(k)
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(scored(leaf, own, target, u)[0].loss, leaf)
    p = leaf[:, FIRST:].softmax(1)

    def ratio(q: Tensor) -> Tensor:
        top = k * (1 - u) * q + u
        return top / top.gather(1, own.unsqueeze(1) - FIRST)

    r, model = ratio(nn.functional.one_hot(target - FIRST, k).double()), ratio(p)
    terms = model - r + r * (r / model).log()
    (expected,) = torch.autograd.grad(terms.sum(), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_f_is_zero_where_the_prediction_is_certain_and_right() -> None:
    logits, own, target = cells(5)
    certain = torch.full_like(logits, -800.0).scatter(1, target.unsqueeze(1), 0.0)
    assert scored(certain, own, target, 0.3)[0].of_cells.abs().max() < 1e-12
    wrong = certain.scatter(1, target.unsqueeze(1), -900.0)
    assert scored(wrong, own, target, 0.3)[0].of_cells.min() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [0.0, 1e-48, 2.0**-52, 1 - 2.0**-52, 1.0])
def test_loss_and_gradient_are_finite_at_both_ends(u: float, dtype: torch.dtype) -> None:
    """Also with one possible token, which costs nothing, and with a prediction that is certainly wrong."""
    for k, scale in ((1, 1.0), (5, 1.0), (5, 60.0)):
        logits, own, target = cells(k)
        leaf = (scale * logits).to(dtype).requires_grad_()
        loss = scored(leaf, own, target, u)[0].loss
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert k > 1 or (float(loss.detach()) == 0 and not gradient.any())
    assert u < 1 or float(scored(*cells(5), u)[0].loss) == 0


def test_clean_cells_cost_what_they_do_in_the_limit() -> None:
    """t -> 0: F / K at z = x tends to (1 / p_z - 1) / K, and noised cells cost about log(1 / t) / t."""
    logits, own, _ = cells(5)
    p = logits[:, FIRST:].softmax(1)[torch.arange(CELLS), own - FIRST]
    torch.testing.assert_close(scored(logits, own, own, 1e-14)[0].of_cells, 1 / p - 1, rtol=1e-9, atol=0)
    other = FIRST + (own - FIRST + 1) % 5
    q, u = logits[:, FIRST:].softmax(1)[torch.arange(CELLS), other - FIRST], 1e-9
    expected = 5 / u * (math.log(5 / u) - 1 - (q / p).log())
    torch.testing.assert_close(scored(logits, own, other, u)[0].of_cells, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("u", [1e-12, 1e-6, 1e-3, 0.5, 0.999, 1 - 1e-5])
def test_float32_keeps_its_digits_at_a_large_vocabulary(u: float) -> None:
    """Sums of 30,522 terms near both ends: the published forms lose up to 1.5 per cent there."""
    k, generator = 30_522, torch.Generator().manual_seed(0)
    logits = torch.randn(4, FIRST + k, generator=generator)
    own = torch.tensor([5, 5, 700, 30_000])
    target = torch.tensor([5, 6, 700, 9])
    found = scored(logits, own, target, u)[0].of_cells
    expected = scored(logits.double(), own, target, u)[0].of_cells
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


def test_impossible_tokens_change_nothing() -> None:
    """K is the number of possible tokens, whatever the number of columns."""
    logits, own, target = cells(5)
    wide = torch.cat([torch.randn(CELLS, 40).double(), logits], dim=1)
    vocabulary = CellVocabulary(vocab_size=48, pad_id=0, eos_id=1, suppressed_ids=range(43))
    bound = UniformNELBO(
        vocabulary,
        own=own + 40,
        target=target + 40,
        one_minus_alpha=torch.full((CELLS,), 0.2, dtype=torch.float64),
        weight=torch.full((CELLS,), 5.0, dtype=torch.float64),
        may_end=torch.zeros(CELLS, dtype=torch.bool),
    )
    leaf = wide.clone().requires_grad_()
    found = linear_cell_loss(leaf, nn.Identity(), bound)
    expected = scored(logits, own, target, 0.2)[0].of_cells
    torch.testing.assert_close(found.of_cells, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(found.loss, leaf)
    assert not gradient[:, :43].any()


def test_tokens_that_end_a_text_count_where_it_may_end() -> None:
    logits, own, target = cells(5)
    vocabulary = CellVocabulary(vocab_size=8, pad_id=0, eos_id=1, suppressed_ids=[0, 1, 2])
    may_end = torch.arange(CELLS) % 3 == 0
    bound = UniformNELBO(
        vocabulary,
        own=own,
        target=target,
        one_minus_alpha=torch.full((CELLS,), 0.2, dtype=torch.float64),
        weight=torch.ones(CELLS, dtype=torch.float64),
        may_end=may_end,
    )
    found = linear_cell_loss(logits, nn.Identity(), bound).of_cells
    for cell in range(CELLS):
        possible = [0, 1, *range(3, 8)] if may_end[cell] else [*range(3, 8)]
        p = logits[cell, possible].softmax(0).numpy()
        z, x = possible.index(int(own[cell])), possible.index(int(target[cell]))
        assert found[cell].item() == pytest.approx(integrand(p, z, x, 0.8) / len(possible), rel=1e-9)


class _LargestTensors(TorchDispatchMode):
    """The most elements of any tensor that is made, and of those in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.largest_double = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                if tensor.dtype == torch.float64:
                    self.largest_double = max(self.largest_double, tensor.numel())
        return made


def test_no_table_over_all_cells_and_none_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of four cells: (cells, vocab) is never made, and in float64 there are columns only."""
    k = 500
    _, own, target = cells(k)
    head = nn.Linear(8, FIRST + k)
    hidden = torch.randn(CELLS, 8, requires_grad=True)
    monkeypatch.setattr(cell_loss, "_LOGITS_AT_ONCE", 4 * (FIRST + k))
    vocabulary = CellVocabulary(vocab_size=FIRST + k, pad_id=0, eos_id=None, suppressed_ids=[1, 2])
    bound = UniformNELBO(
        vocabulary,
        own=own,
        target=target,
        one_minus_alpha=torch.full((CELLS,), 0.2, dtype=torch.float64),
        weight=torch.ones(CELLS, dtype=torch.float64),
        may_end=torch.zeros(CELLS, dtype=torch.bool),
    )
    with _LargestTensors() as seen:
        linear_cell_loss(hidden, head, bound).loss.backward()
    assert seen.largest <= max(4 * 512, 8 * (FIRST + k))
    assert seen.largest_double <= 4 * CELLS


def test_a_denoisers_logits_are_converted() -> None:
    logits, own, target = cells(5)
    for u in (1e-6, 0.3, 0.9):
        bonus = torch.full((CELLS,), math.log1p(5 * (1 - u) / u), dtype=torch.float64)
        raised = logits.scatter_add(1, own.unsqueeze(1), bonus.unsqueeze(1))
        found = scored(raised, own, target, u, bonus)[0].of_cells
        torch.testing.assert_close(found, scored(logits, own, target, u)[0].of_cells, rtol=1e-9, atol=0)


def test_another_vocabulary_is_refused() -> None:
    logits, own, target = cells(5)
    vocabulary = CellVocabulary(vocab_size=9, pad_id=0, eos_id=None)
    ones = torch.ones(CELLS, dtype=torch.float64)
    bound = UniformNELBO(
        vocabulary, own=own, target=target, one_minus_alpha=ones / 2, weight=ones,
        may_end=ones > 2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="vocab_size must be that of the logits, 8, got 9"):
        linear_cell_loss(logits, nn.Identity(), bound)
    with pytest.raises(ValueError, match="vocab_size=9 has no id 12"):
        CellVocabulary(vocab_size=9, pad_id=0, eos_id=None, suppressed_ids=[12])
    with pytest.raises(ValueError, match="no token of vocab_size=2 is left for texts"):
        CellVocabulary(vocab_size=2, pad_id=0, eos_id=1)


def test_vectors_of_the_authors(reference: dict[str, Tensor]) -> None:
    """The integrand with K = V = 11 tokens (udlm, and duo with its eps), and over 6 possible ones."""
    times, clean = reference["in.t"], reference["in.x0"]
    everything = CellVocabulary(vocab_size=11, pad_id=0, eos_id=None)
    allowed = CellVocabulary(vocab_size=11, pad_id=0, eos_id=3, suppressed_ids=[1, 2, 4, 5, 6])
    duo = reference["official.duo.alpha.f64"], reference["official.duo.d_alpha.f64"]
    line = 1 - times, -torch.ones_like(times)
    cases = [
        (everything, reference["official.udlm.x_t.f64"], line, "official.udlm.token_nelbo.f64"),
        (everything, reference["official.udlm.x_t.f64"], duo, "official.duo.token_nelbo.f64"),
        (allowed, reference["derived.x_t"], line, "derived.token_nelbo"),
    ]
    for vocabulary, state, (alpha, d_alpha), name in cases:
        spread = [values.view(3, 1).expand(3, 6).flatten() for values in (1 - alpha, -d_alpha / alpha)]
        bound = UniformNELBO(
            vocabulary,
            own=state.flatten(),
            target=clean.flatten(),
            one_minus_alpha=spread[0],
            weight=spread[1],
            may_end=torch.ones(18, dtype=torch.bool),
        )
        found = linear_cell_loss(reference["in.logits"].double().flatten(0, 1), nn.Identity(), bound)
        torch.testing.assert_close(found.of_cells.view(3, 6), reference[name], rtol=1e-9, atol=0)
