"""Which cells are masked: rates of a schedule, rows without BOS, rows without any token."""

import pytest
import torch

from xlm.modules import Polynomial
from xlm_mlm import (
    MLMBatch,
    MLMCollator,
    MLMExample,
    MLMLikelihoodCollator,
    MLMPromptBatch,
    MLMPromptCollator,
)

from .test_collators_mlm import BOS, EOS, MASK, PAD, assert_uniform_given_count, bare, many, subsets


def test_masks_of_a_row_without_bos_do_not_depend_on_its_rate_alone() -> None:
    """The cells begin at column 0: the rate and the first cell must not share a draw."""
    batch = bare()(many(8000, 3))
    assert_uniform_given_count(subsets(batch, first=0), (0, 1, 2), least=0)
    collate = MLMLikelihoodCollator(pad_id=PAD, mask_id=MASK, bos_id=None, eos_id=None)
    assert_uniform_given_count(subsets(collate(many(8000, 3)), first=0), (0, 1, 2), least=1)


def test_rates_of_a_schedule_are_one_minus_alpha() -> None:
    """Under alpha = (1 - t)^2 a cell is masked with probability 2/3, both of two with 8/15."""
    collate = MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, schedule=Polynomial(2.0))
    batch = collate(many(8000, 2))
    both = batch["masked"][:, 1:].all(1).double().mean()
    one = batch["masked"][:, 1].double().mean()
    assert float(one) == pytest.approx(2 / 3, abs=4.5 * (2 / 9 / 8000) ** 0.5)
    assert float(both) == pytest.approx(8 / 15, abs=4.5 * (56 / 225 / 8000) ** 0.5)
    assert "likelihood_weight" not in batch
    with pytest.raises(ValueError, match="exclude one another"):
        MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, schedule=Polynomial(2.0), mask_rate=0.5)


def test_rows_without_any_token() -> None:
    """An empty target between no special tokens, alone and beside a row with tokens."""
    empty: MLMExample = {"seed": 0, "target_ids": torch.empty(0, dtype=torch.int64)}
    generate = MLMPromptCollator(pad_id=PAD, mask_id=MASK, bos_id=None, eos_id=None, default_length=0)
    score = MLMLikelihoodCollator(pad_id=PAD, mask_id=MASK, bos_id=None, eos_id=None, num_draws=2)
    alone: list[tuple[MLMBatch | MLMPromptBatch, int]] = [
        (bare()([empty]), 1),
        (score([empty]), 2),
        (generate([{"seed": 0}]), 1),
    ]
    for batch, rows in alone:
        assert batch["input_ids"].shape == batch["masked"].shape == (rows, 0)
    beside = bare()([empty, {"seed": 1, "target_ids": torch.tensor([7, 8])}])
    assert beside["num_eligible"].tolist() == [0, 2]
    assert beside["attention_mask"] is not None
    assert beside["attention_mask"].tolist() == [[False, False], [True, True]]
