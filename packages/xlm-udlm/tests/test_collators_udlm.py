"""Where the tokens of a row stand, what is noised, and to what."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules import Cosine, LogLinear, NoiseSchedule, Polynomial, uniform
from xlm_udlm import (
    UDLMBatch,
    UDLMCollator,
    UDLMExample,
    UDLMLikelihoodCollator,
    UDLMLoss,
    UDLMMetrics,
    UDLMPromptCollator,
)

PAD, MASK, EOS, BOS, UNK, A, B, C, D = range(9)
SUPPRESSED = [PAD, MASK, EOS, BOS]
TEXT = {UNK, A, B, C, D}


def collator(**changes: Any) -> UDLMCollator:
    options: dict[str, Any] = {
        "schedule": LogLinear(eps=0.0),
        "vocab_size": 9,
        "pad_id": PAD,
        "bos_id": BOS,
        "eos_id": EOS,
        "suppressed_ids": SUPPRESSED,
    }
    return UDLMCollator(**{**options, **changes})


def prompts(**changes: Any) -> UDLMPromptCollator:
    options: dict[str, Any] = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
    return UDLMPromptCollator(**{**options, **changes})


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


EXAMPLES: list[UDLMExample] = [
    {"seed": 1, "prompt_ids": ids(D, D), "target_ids": ids(A, B)},
    {"seed": 2, "target_ids": ids(A, B, C), "fixed": torch.tensor([False, True, False])},
    {"seed": 3, "target_ids": ids()},
]


def free(batch: UDLMBatch) -> list[list[int]]:
    """Columns of the free cells of each row."""
    return [batch["cell_column"][batch["cell_row"] == row].tolist() for row in range(len(batch["input_ids"]))]


def test_rows_of_known_length() -> None:
    batch = collator()(EXAMPLES)
    assert batch["target_ids"].tolist() == [[D, D, BOS, A, B], [BOS, A, B, C, PAD], [BOS, PAD, PAD, PAD, PAD]]
    assert batch["attention_mask"] is not None
    assert batch["attention_mask"].sum(1).tolist() == [5, 4, 1]
    assert free(batch) == [[3, 4], [1, 3], []]
    assert batch["num_free"].tolist() == batch["num_tokens"].tolist() == [2, 2, 0]
    assert not batch["may_end"].any()
    assert not batch["models_length"].any()


def test_rows_of_fixed_width() -> None:
    """EOS, then PAD; a text that fills the width has no EOS; no end left of a given token."""
    batch = collator(target_length=3)(EXAMPLES)
    assert batch["target_ids"].tolist() == [
        [D, D, BOS, A, B, EOS],
        [BOS, A, B, C, PAD, PAD],
        [BOS, EOS, PAD, PAD, PAD, PAD],
    ]
    assert batch["may_end"].int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert free(batch) == [[3, 4, 5], [1, 3], [1, 2, 3]]
    assert batch["num_tokens"].tolist() == [2, 2, 0]
    assert batch["models_length"].all()
    no_eos = collator(target_length=3, eos_id=None)(EXAMPLES)
    assert no_eos["target_ids"][:, 3:].tolist() == [[A, B, PAD], [C, PAD, PAD], [PAD, PAD, PAD]]


def test_a_text_whose_last_token_is_given_ends_there() -> None:
    given: UDLMExample = {"seed": 0, "target_ids": ids(A, B), "fixed": torch.tensor([False, True])}
    batch = collator(target_length=4)([given])
    assert batch["target_ids"].tolist() == [[BOS, A, B, EOS, PAD]]
    assert free(batch) == [[1]]
    assert prompts(target_length=4)([given])["input_ids"].tolist() == [[BOS, PAD, B, EOS, PAD]]


def test_noise_is_uniform_over_the_tokens_that_are_possible_at_a_cell() -> None:
    """Never a special token inside a text, never anything at given cells; the old token among the others."""
    rows, u = 6000, 0.999
    examples: list[UDLMExample] = [{**EXAMPLES[1], "seed": seed} for seed in range(rows)]
    batch = collator(target_length=3, min_time=u, time_power=1.0)(examples)
    assert (batch["input_ids"][:, [0, 2]] == torch.tensor([BOS, B])).all()
    for column, possible in ((1, TEXT), (3, TEXT | {PAD, EOS})):
        counts = torch.bincount(batch["input_ids"][:, column], minlength=9)
        assert set(counts.nonzero().flatten().tolist()) == possible
        expected = rows / len(possible)
        assert (counts[counts > 0] - expected).abs().max() < 4.5 * math.sqrt(expected)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(eps=0.0), Polynomial(2.0)], ids=repr)
def test_times_weights_and_noise_belong_together(schedule: NoiseSchedule) -> None:
    """The time is read back from the noise; the weight is the schedule's, and cells change at its rate."""
    rows, length, power = 2000, 20, 2.0
    examples: list[UDLMExample] = [
        {"seed": seed, "target_ids": torch.full((length,), A)} for seed in range(rows)
    ]
    batch = collator(schedule=schedule, min_time=0.1, time_power=power)(examples)
    alpha = 1 - batch["one_minus_alpha"]
    uncut = alpha > 2e-4
    torch.testing.assert_close(batch["noise"][uncut], -alpha.log()[uncut], rtol=1e-9, atol=1e-12)
    time = schedule.inverse(alpha)
    s = ((time - 0.1) / 0.9).clamp(min=0) ** (1 / power)
    assert float(s.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * rows))
    expected = -schedule.d_alpha(time) / alpha * power * s ** (power - 1) * 0.9
    torch.testing.assert_close(batch["weight"][uncut], expected[uncut], rtol=1e-6, atol=0)
    # A noised cell has another token in four of five cases.
    surplus = (batch["input_ids"] != batch["target_ids"]).sum(1) - length * 0.8 * batch["one_minus_alpha"]
    assert float(surplus.mean()) == pytest.approx(0.0, abs=4 * math.sqrt(length / 4 / rows))
    rate = 0.8 * batch["one_minus_alpha"]
    spread = surplus.square() / (length * rate * (1 - rate)).clamp(min=1e-9)
    assert float(spread[(rate > 0.05) & (rate < 0.95)].mean()) == pytest.approx(1.0, abs=0.15), "independent"


def test_a_row_of_nothing_but_noise_costs_nothing() -> None:
    """At alpha = 0, where the weight is infinite and F is 0."""

    class Early(Polynomial):
        """1 - 2 t, then 0."""

        def alpha(self, t: Tensor) -> Tensor:
            return (1 - 2 * t).clamp(min=0)

        def d_alpha(self, t: Tensor) -> Tensor:
            return -2.0 * (t < 0.5)

        def loss_weight(self, t: Tensor) -> Tensor:
            return -self.d_alpha(t) / (1 - self.alpha(t))

    examples: list[UDLMExample] = [{"seed": seed, "target_ids": ids(A, B)} for seed in range(40)]
    batch = collator(schedule=Early(1.0), time_power=1.0)(examples)
    is_noise = batch["one_minus_alpha"] == 1
    assert 10 < int(is_noise.sum()) < 30
    assert torch.equal(batch["weight"] == 0, is_noise)
    assert batch["weight"].isfinite().all()


def test_times_are_stratified_over_the_places_of_the_stream() -> None:
    def positions(places: list[int]) -> list[float]:
        examples: list[UDLMExample] = [
            {"seed": 100 + place, "place": place, "target_ids": ids(A)} for place in places
        ]
        return (collator()(examples)["one_minus_alpha"] ** (1 / 3)).tolist()

    batch = positions(list(range(64, 128)))
    assert sorted(int(64 * s) for s in batch) == list(range(64))
    assert positions([70, 99]) == [batch[6], batch[35]], "no other row enters"
    some: list[UDLMExample] = [{"seed": 1, "target_ids": ids(A)}, {"seed": 2, "target_ids": ids(A)}]
    expected = uniform(torch.tensor([1, 2]), 1, step=0, stream=0).squeeze(1) ** 3
    torch.testing.assert_close(collator()(some)["one_minus_alpha"], expected)


def test_draws_of_the_likelihood_cover_all_noise_levels() -> None:
    """1 - alpha = s^3, one s in each stratum, the weight 3 s^2 / alpha; every draw has noise of its own."""
    rows, draws = 400, 4
    examples: list[UDLMExample] = [{"seed": seed, "target_ids": torch.full((30,), A)} for seed in range(rows)]
    collate = UDLMLikelihoodCollator(
        schedule=LogLinear(), vocab_size=9, pad_id=PAD, bos_id=BOS, eos_id=EOS, suppressed_ids=SUPPRESSED,
        num_draws=draws,
    )  # fmt: skip
    batch = collate(examples)
    s = batch["one_minus_alpha"] ** (1 / 3)
    assert (s * draws).long().view(rows, draws).tolist() == [[0, 1, 2, 3]] * rows
    torch.testing.assert_close(batch["weight"], 3 * s**2 / (1 - s**3), rtol=1e-9, atol=0)
    assert float(s.min()) < 0.01
    changed = (batch["input_ids"] != batch["target_ids"]).double().mean(1)
    assert float((changed - 0.8 * s**3).mean()) == pytest.approx(0, abs=0.01)
    last = batch["input_ids"].view(rows, draws, -1)[:, -2:]
    assert not torch.equal(last[:, 0], last[:, 1])


def test_prompts_show_the_fixed_tokens_only() -> None:
    batch = prompts(target_length=4)([*EXAMPLES, {"seed": 4}])
    assert batch["input_ids"].tolist() == [
        [D, D, BOS, PAD, PAD, PAD, PAD],
        [BOS, PAD, B, PAD, PAD, PAD, PAD],
        [BOS, PAD, PAD, PAD, PAD, PAD, PAD],
        [BOS, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch["target_start"].tolist() == [3, 1, 1, 1]
    assert batch["free"].sum(1).tolist() == [4, 3, 4, 4]
    assert batch["may_end"][1].tolist() == [False, False, False, True, True, False, False]
    known = prompts(default_length=2)([EXAMPLES[0], {"seed": 4}])
    assert known["free"].int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"seed": 0, "target_ids": ids(A, A, A, A)}, "4 target tokens, the limit is target_length=3"),
        ({"seed": 0, "target_ids": ids(A, EOS)}, "holds token id 2, which is PAD or EOS"),
        ({"seed": 0, "target_ids": ids(A, MASK)}, "holds token id 1, which is one of suppressed_ids"),
        (
            {"seed": 0, "target_ids": ids(A, B), "fixed": torch.tensor([True])},
            "'fixed' of example 0 has 1 entries for 2 target tokens",
        ),
    ],
)
def test_examples_that_do_not_fit_are_refused(example: UDLMExample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collator(target_length=3)([example])


def test_what_has_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its length is unknown: give target_length.*or default_length"):
        prompts()([{"seed": 0}])
    with pytest.raises(ValueError, match="empty list"):
        collator()([])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="target_length must be None or at least 1, got 0"):
        collator(target_length=0)
    with pytest.raises(ValueError, match=r"min_time must be in \[0, 1\), got 1.0"):
        collator(min_time=1.0)
    with pytest.raises(ValueError, match=r"time_power must be at least 1, got 0.5"):
        collator(time_power=0.5)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        UDLMLikelihoodCollator(
            schedule=LogLinear(), vocab_size=9, pad_id=PAD, bos_id=BOS, eos_id=EOS, num_draws=0
        )
    with pytest.raises(ValueError, match="None with a target_length"):
        prompts(target_length=3, default_length=3)


def packed(*documents: Sequence[int]) -> UDLMExample:
    lengths = torch.tensor([len(document) for document in documents])
    return {
        "seed": len(documents),
        "target_ids": torch.tensor([token for document in documents for token in document]),
        "segment_ids": torch.arange(len(documents)).repeat_interleave(lengths),
    }


def test_packed_blocks_hold_their_special_tokens_already() -> None:
    bare = collator(bos_id=None, eos_id=None, suppressed_ids=[MASK])
    batch = bare([packed([BOS, A, EOS], [BOS, B, C, EOS]), packed([BOS, D, EOS], [C, A])])
    assert batch["target_ids"].tolist() == [[BOS, A, EOS, BOS, B, C, EOS], [BOS, D, EOS, C, A, PAD, PAD]]
    assert batch.get("segment_ids", torch.empty(0)).tolist() == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, -1, -1],
    ]
    assert batch["num_free"].tolist() == batch["num_tokens"].tolist() == [7, 5]
    assert bare([packed([BOS, A, EOS], [B])])["attention_mask"] is None, "no work on padding"
    with pytest.raises(ValueError, match="set bos_id=None and target_length=None"):
        collator()([packed([A, B], [C])])


def test_documents_of_a_packed_block_do_not_see_each_other() -> None:
    """Noise in one does not change the loss of another."""
    from xlm_udlm import UDLMDiT

    model = UDLMDiT(vocab_size=9, d_model=16, num_layers=2, num_heads=2, d_condition=8).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    loss = UDLMLoss(vocab_size=9, pad_id=PAD, eos_id=None, suppressed_ids=[MASK])
    bare = collator(bos_id=None, eos_id=None, suppressed_ids=[MASK])
    batch = bare([packed([BOS, A, EOS], [BOS, B, C, EOS])])
    batch["cell_row"], batch["cell_column"] = batch["cell_row"][:3], batch["cell_column"][:3]
    ids = batch["input_ids"].clone()
    ids[0, 4] = D if int(ids[0, 4]) != D else A
    changed: UDLMBatch = {**batch, "input_ids": ids}
    losses = [loss(model, some).loss_sum.item() for some in (batch, changed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    del changed["segment_ids"]
    assert loss(model, changed).loss_sum.item() != pytest.approx(losses[0], rel=1e-6)


def test_counts_of_the_loss_and_their_metrics() -> None:
    """Rows with a noise of 0.1, 0.25, 0.6 and 1: levels (0, 25], (25, 50], (50, 75] and (75, 100]."""

    class Fixed(torch.nn.Module):
        """p = 1/2 for A, 1/4 for B and 1/4 for C at every cell."""

        def forward(self, ids: Tensor, mask: Tensor | None, noise: Tensor, *, positions: Tensor) -> Tensor:
            p = torch.full((9,), -math.inf, dtype=torch.float64)
            p[A:D] = torch.tensor([0.5, 0.25, 0.25]).log()
            return p.repeat(len(positions), 1)

    batch = collator()([{"seed": seed, "target_ids": ids(A, B)} for seed in range(4)])
    batch["one_minus_alpha"] = torch.tensor([0.1, 0.25, 0.6, 1.0], dtype=torch.float64)
    batch["input_ids"] = batch["target_ids"].clone()
    batch["input_ids"][1, 2] = C
    output = UDLMLoss(vocab_size=9, pad_id=PAD, eos_id=EOS, suppressed_ids=SUPPRESSED)(Fixed(), batch)
    assert output.cells_by_level.tolist() == [4, 0, 2, 2]
    nats = math.log(2) + math.log(4)
    assert output.entropy_by_level.tolist() == pytest.approx([2 * nats, 0, nats, nats])
    assert (int(output.num_correct), int(output.num_noised), int(output.loss_count)) == (4, 1, 8)
    metrics = UDLMMetrics()
    assert set(metrics.compute().values()) == {0.0}
    for _ in range(2):
        metrics.update(output)
    assert metrics.compute() == pytest.approx(
        {
            "accuracy": 0.5,
            "mean_noise_rate": 1 / 8,
            "entropy_0_25": nats / 2,
            "entropy_25_50": 0.0,
            "entropy_50_75": nats / 2,
            "entropy_75_100": nats / 2,
        }
    )
    assert all(total.ndim == 0 and not total.requires_grad for total in metrics.sums.values())
    metrics.reset()
    assert not any(total.any() for total in metrics.sums.values())
