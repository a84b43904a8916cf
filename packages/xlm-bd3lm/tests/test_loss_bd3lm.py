"""The loss against the authors' code and against the bound by enumeration, and its counts."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import LogLinear, stratified_times, uniform
from xlm_bd3lm import (
    BD3LMBatch,
    BD3LMCollator,
    BD3LMExample,
    BD3LMLikelihoodCollator,
    BD3LMLoss,
    BD3LMMetrics,
    BD3LMPredictor,
    BD3LMPromptCollator,
    BD3LMRotary,
)

from .exact_bd3lm import BOS, EOS, FIRST, MASK, PAD, TableNetwork, bound, masked_batch

LOSS = BD3LMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[BOS])
TARGET = (FIRST + 1, FIRST, FIRST + 1, FIRST + 1)


class FixedLogits(nn.Module):
    """Answers with given logits (rows, cells, vocab) at the noisy cells, and records the requested ones."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.positions = torch.empty(0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *, positions: Tensor
    ) -> Tensor:
        self.positions = positions
        width = input_ids.shape[1]
        return self.logits[positions // width, positions % width]


def official_batch(reference: Mapping[str, Tensor]) -> BD3LMBatch:
    """The rows of the authors: blocks of two columns, BOS the given first cell, times of each block."""
    noisy, clean = reference["official.x_t.f64"], reference["in.x0"]
    masked = noisy == 2
    row, column = masked.nonzero(as_tuple=True)
    blocks = 1 + torch.arange(6) // 2
    return {
        "input_ids": noisy,
        "target_ids": clean,
        "cell_blocks": blocks.expand(3, -1),
        "clean_ids": clean,
        "clean_blocks": blocks.expand(3, -1),
        "prompt_length": torch.zeros(3, dtype=torch.int64),
        "masked": masked,
        "masked_row": row,
        "masked_column": column,
        "masked_level": torch.zeros_like(row),
        "may_end": torch.ones_like(masked),
        "may_pad": (torch.arange(6) % 2 != 0).expand(3, -1),
        "weight": 1 / reference["in.t_block"][row, column // 2],
        "num_eligible": torch.full((3,), 6),
        "num_tokens": torch.full((3,), 6),
        "models_length": torch.ones(3, dtype=torch.bool),
    }


@pytest.mark.parametrize(("precision", "rtol"), [("f64", 1e-6), ("f32", 1e-4)])
def test_loss_is_the_reference_over_the_possible_tokens(
    reference: dict[str, Tensor], precision: str, rtol: float
) -> None:
    logits = reference["in.logits"].to({"f64": torch.float64, "f32": torch.float32}[precision])
    model, batch = FixedLogits(logits), official_batch(reference)
    output = BD3LMLoss(mask_id=2, pad_id=0, eos_id=3, suppressed_ids=[1, 4, 5, 6])(model, batch)
    summed = reference[f"derived.loss_sum.{precision}"]
    torch.testing.assert_close(output.loss_sum.detach().to(summed.dtype), summed, rtol=rtol, atol=0)
    assert int(output.loss_count) == 18, "all cells, masked or not"
    assert model.positions.tolist() == [
        row * 12 + column for row, column in batch["masked"].nonzero().tolist()
    ]


@pytest.mark.parametrize(("precision", "rtol"), [("f64", 1e-6), ("f32", 1e-4)])
def test_loss_of_the_authors_code(reference: dict[str, Tensor], precision: str, rtol: float) -> None:
    """Theirs allows every token but MASK."""
    logits = reference["in.logits"].to({"f64": torch.float64, "f32": torch.float32}[precision])
    batch = official_batch(reference)
    batch["may_pad"] = batch["may_end"]
    loss_sum = BD3LMLoss(mask_id=2, pad_id=0, eos_id=3)(FixedLogits(logits), batch).loss_sum.detach()
    summed = reference[f"official.token_nelbo.{precision}"].sum()
    torch.testing.assert_close(loss_sum.to(summed.dtype), summed, rtol=rtol, atol=0)


def test_mask_has_no_probability(reference: dict[str, Tensor]) -> None:
    batch = official_batch(reference)
    loss = BD3LMLoss(mask_id=2, pad_id=0, eos_id=3)
    certain_of_mask = reference["in.logits"].double()
    certain_of_mask[..., 2] = 50.0
    model = FixedLogits(certain_of_mask)
    output = loss(model, batch)
    assert torch.equal(output.loss_sum, loss(FixedLogits(reference["in.logits"].double()), batch).loss_sum)
    output.loss_sum.backward()
    assert model.logits.grad is not None
    assert not model.logits.grad[..., 2].any()
    assert not model.logits.grad[~batch["masked"]].any(), "unmasked cells are copied, so they cost nothing"


def test_impossible_targets_are_refused() -> None:
    model = TableNetwork(length=4, num_tokens=2, seed=1)
    for token, batch in {
        BOS: masked_batch((BOS, FIRST, FIRST, FIRST), 2, [(0,)], [1.0]),
        EOS: masked_batch((FIRST, EOS, FIRST, FIRST), 2, [(1,)], [1.0]),
        PAD: masked_batch((FIRST, EOS, PAD, PAD), 2, [(2,)], [1.0], may_end=True),
    }.items():
        with pytest.raises(ValueError, match=f"token id {token}, which is impossible"):
            LOSS(model, batch)
    assert LOSS(model, masked_batch((FIRST, EOS, PAD, PAD), 4, [(1, 2)], [1.0], may_end=True)).loss_sum > 0


def test_an_end_that_is_also_padding_may_begin_a_block() -> None:
    """With EOS = PAD the first cell of a block may be the end."""
    model = TableNetwork(length=4, num_tokens=2, seed=1)
    loss = BD3LMLoss(mask_id=MASK, pad_id=PAD, eos_id=PAD, suppressed_ids=[BOS])
    assert loss(model, masked_batch((FIRST, FIRST, PAD, PAD), 2, [(2,)], [1.0], may_end=True)).loss_sum > 0


def test_mask_that_is_also_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_id must differ"):
        BD3LMLoss(mask_id=0, pad_id=0, eos_id=3)


def collator(block_length: int, **options: object) -> BD3LMCollator:
    ids = {"mask_id": MASK, "pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
    return BD3LMCollator(**ids, block_length=block_length, **options)  # pyright: ignore[reportArgumentType]  # by name


def test_one_block_has_the_loss_of_masked_diffusion_draw_by_draw() -> None:
    """Times, masked cells and weights: t from the place, a cell masked if its uniform is >= alpha."""
    model, schedule = TableNetwork(length=4, num_tokens=2, seed=1), LogLinear()
    examples: list[BD3LMExample] = [
        {"seed": seed, "place": 7 + seed, "target_ids": torch.tensor(TARGET)} for seed in range(5)
    ]
    batch = collator(9, noise="time", schedule=schedule)(examples)
    seeds = torch.arange(5)
    time = 1e-3 + (1 - 1e-3) * stratified_times(seeds, 7 + seeds, stream=0)
    masked = uniform(seeds, 4, step=0, stream=1) >= schedule.alpha(time).unsqueeze(1)
    assert torch.equal(batch["masked"], masked)
    places = [row.nonzero().squeeze(1).tolist() for row in masked]
    expected = LOSS(model, masked_batch(TARGET, 4, places, schedule.loss_weight(time).tolist())).loss_sum
    torch.testing.assert_close(LOSS(model, batch).loss_sum, expected, rtol=1e-12, atol=0)


def test_clipped_levels_train_on_another_objective_unless_blocks_have_one_cell() -> None:
    """The weights are those of all levels: the mean of 1 / t times t over any clip is 1 for a single cell."""
    model, number = TableNetwork(length=4, num_tokens=2, seed=1), 4000
    examples: list[BD3LMExample] = [
        {"seed": seed, "target_ids": torch.tensor(TARGET)} for seed in range(number)
    ]
    for block_length, differs in ((1, False), (4, True)):
        expected = bound(model.prediction(block_length), TARGET, block_length)
        clipped = collator(block_length, noise="time", schedule=LogLinear(0.0), min_time=0.0, clip=(0.3, 0.8))
        batch = clipped(examples)
        output = LOSS(model, batch)
        assert ((batch["weight"] >= 1 / 0.8) & (batch["weight"] <= 1 / 0.3)).all()
        mean = float(output.loss_sum) / number
        assert (abs(mean - expected) > 0.1) == differs, (mean, expected)


def test_clipped_numbers_are_those_of_their_shares() -> None:
    examples: list[BD3LMExample] = [{"seed": seed, "target_ids": torch.tensor(TARGET)} for seed in range(300)]
    batch = collator(4, clip=(0.5, 0.8))(examples)
    assert sorted(set(batch["masked"].sum(1).tolist())) == [2, 3]
    assert set(batch["weight"].tolist()) == {2.0, 4 / 3}
    assert collator(1, clip=(0.5, 0.8))(examples)["masked"].all()


def test_counts_of_the_loss_and_their_metrics() -> None:
    """Blocks of 4 with 1, 2, 3 and 4 masks fall into the levels (0, 25], (25, 50], (50, 75], (75, 100]."""
    model = TableNetwork(length=4, num_tokens=2, seed=1)
    predict = model.prediction(4)
    rows: list[tuple[int, ...]] = [(1,), (0, 2), (0, 1, 3), (0, 1, 2, 3)]
    batch = masked_batch(TARGET, 4, rows, [7.0] * 4)
    batch["masked_level"] = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
    output = LOSS(model, batch)
    predictions = [
        [(predict(cells, place), TARGET[place]) for place in places]
        for places in rows
        for cells in [tuple(MASK if i in places else token for i, token in enumerate(TARGET))]
    ]
    entropies = [sum(-math.log(distribution[token]) for distribution, token in row) for row in predictions]
    assert output.entropy_by_level.tolist() == pytest.approx(entropies, rel=1e-12)
    assert output.masked_by_level.tolist() == [1, 2, 3, 4]
    assert float(output.loss_sum) == pytest.approx(7 * sum(entropies), rel=1e-12)
    right = sum(
        max(distribution, key=distribution.__getitem__) == token
        for distribution, token in itertools.chain(*predictions)
    )
    assert (int(output.num_correct), int(output.num_masked), int(output.loss_count)) == (right, 10, 16)

    metrics = BD3LMMetrics()
    assert set(metrics.compute().values()) == {0.0}
    for _ in range(2):
        metrics.update(output)
    names = ("entropy_0_25", "entropy_25_50", "entropy_50_75", "entropy_75_100")
    means = {name: nats / masks for name, nats, masks in zip(names, entropies, (1, 2, 3, 4), strict=True)}
    assert metrics.compute() == pytest.approx(
        {"masked_accuracy": right / 10, "mean_mask_rate": 10 / 16, **means}
    )
    assert all(total.ndim == 0 and not total.requires_grad for total in metrics.sums.values())
    metrics.reset()
    assert not any(total.any() for total in metrics.sums.values())


def test_documents_of_a_packed_block_do_not_see_each_other() -> None:
    """Each has the loss of a row of its own with blocks as they are cut in the packed one."""
    model = BD3LMRotary(vocab_size=9, d_model=16, num_layers=2, num_heads=2).double().eval()
    documents = [torch.tensor([BOS, 5, 6, EOS]), torch.tensor([BOS, 7, 7, 8]), torch.tensor([6, 8])]
    segments = torch.arange(3).repeat_interleave(torch.tensor([4, 4, 2]))
    packed: BD3LMExample = {"seed": 3, "target_ids": torch.cat(documents), "segment_ids": segments}
    ids = {"mask_id": MASK, "pad_id": PAD, "bos_id": None, "eos_id": None}
    collate = BD3LMLikelihoodCollator(**ids, block_length=2, num_draws=4)  # pyright: ignore[reportArgumentType]  # by name
    loss = BD3LMLoss(mask_id=MASK, pad_id=PAD, eos_id=None)
    batch = collate([packed, {"seed": 1, "target_ids": documents[0], "segment_ids": segments[:4]}])
    found = loss.likelihood(model, batch).nll[0].detach()
    expected = 0.0
    for start, document in zip((0, 4, 8), documents, strict=True):
        cells = slice(start, start + len(document))
        masked = batch["masked"][:4, cells]
        table = torch.zeros(4, 10, dtype=torch.float64)
        table[batch["masked"][:4]] = batch["weight"][batch["masked_row"] < 4]
        alone = collate([{"seed": 0, "target_ids": document}])
        row, column = masked.nonzero(as_tuple=True)
        changed: Any = alone | {
            "input_ids": alone["target_ids"].masked_fill(masked, MASK),
            "masked": masked,
            "masked_row": row,
            "masked_column": column,
            "masked_level": torch.zeros_like(row),
            "weight": table[:, cells][masked],
        }
        expected += float(loss.likelihood(model, changed).nll.detach())
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_blocks_from_the_first_column_of_the_row() -> None:
    """Prompt and BOS as given cells: the bound by definition, and generation behind them."""
    model = BD3LMRotary(vocab_size=9, d_model=16, num_layers=2, num_heads=2).double().eval()
    prefix, text, given = [6, BOS], [5, 7, 6, 8], torch.arange(6) < 2
    rows: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "bos_id": None, "eos_id": EOS, "block_length": 3}
    collate = BD3LMLikelihoodCollator(**rows, max_target_length=8, num_draws=4)
    batch = collate([{"seed": 3, "target_ids": torch.tensor(prefix + text), "fixed": given}])
    row = torch.tensor([*prefix, *text, EOS, PAD, PAD])
    assert (batch["target_ids"] == row).all()
    assert (batch["cell_blocks"] == 1 + torch.arange(9) // 3).all()
    assert not batch["masked"][:, :2].any()
    found, expected = LOSS.likelihood(model, batch), 0.0
    assert found.num_tokens.tolist() == [4]
    for masked in batch["masked"]:
        for start in (0, 3, 6):
            stop, chosen = start + 3, masked[start : start + 3]
            blocks, noisy = 1 + torch.arange(stop) // 3, row[:stop].clone()
            noisy[start:][chosen] = MASK
            sees = (blocks.unsqueeze(1) >= blocks).unsqueeze(0)
            logits = model(noisy.unsqueeze(0), sees)[0, start:].detach()
            logits[:, [MASK, BOS]] = -math.inf
            logits[0, PAD] = -math.inf
            if start == 0:  # the last given token stands here
                logits[:2, [EOS, PAD]] = -math.inf
            log_probs = logits.log_softmax(1).gather(1, row[start:stop].unsqueeze(1)).squeeze(1)
            free = 1 if start == 0 else 3
            expected -= free / int(chosen.sum()) * float(log_probs[chosen].sum()) / 4
    assert float(found.nll.detach()) == pytest.approx(expected, rel=1e-12)

    prompts = BD3LMPromptCollator(**rows, max_target_length=8)
    # One more token that is not given, or the text ends with the prompt.
    open_end: BD3LMExample = {"seed": 0, "target_ids": torch.tensor([*prefix, 5]), "fixed": given[:3]}
    sample = BD3LMPredictor(
        schedule=LogLinear(), sampler="first_hitting", mask_id=MASK, pad_id=PAD, eos_id=EOS, block_length=3,
        suppressed_ids=[BOS],
    )  # fmt: skip
    written = sample(model, prompts([open_end] * 20), torch.arange(20), trace=True)
    assert (written.ids[:, :2] == torch.tensor(prefix)).all()
    assert (written.trace.position[written.trace.step > 0] >= 2).all()
    assert int(written.lengths.max()) > 2
