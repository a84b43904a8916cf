"""What the collators lay out, cell by cell."""

import pytest
import torch
from torch import Tensor

from xlm_arlm import ARLMBatch, ARLMCollator, ARLMExample, ARLMPromptCollator

from .plain_distribution import BOS, EOS, PAD, example, packed


def marked(batch: ARLMBatch, row: Tensor, column: Tensor) -> Tensor:
    """(rows, length) True at the listed places."""
    table = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    table[row, column] = True
    return table


def targets_of(batch: ARLMBatch) -> Tensor:
    return marked(batch, batch["target_row"], batch["target_column"])


def given_of(batch: ARLMBatch) -> Tensor:
    return marked(batch, batch["given_row"], batch["given_column"])


def test_training_rows(collate: ARLMCollator) -> None:
    batch = collate(
        [
            example([7, 8, 9]),
            example([10, 7], prompt=[9, 8, 7]),
            example([], prompt=[10]),
            example([7, 8, 9], prompt=[10], num_fixed=2),
            example([7, 8], num_fixed=2),
        ]
    )
    assert batch["input_ids"].tolist() == [
        [BOS, 7, 8, 9, EOS, PAD, PAD],
        [9, 8, 7, BOS, 10, 7, EOS],
        [10, BOS, EOS, PAD, PAD, PAD, PAD],
        [10, BOS, 7, 8, 9, EOS, PAD],
        [BOS, 7, 8, EOS, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"] is None, "padding stands on the right"
    targets = targets_of(batch)
    predicted = [row[mask].tolist() for row, mask in zip(batch["input_ids"], targets, strict=True)]
    assert predicted == [[7, 8, 9, EOS], [10, 7, EOS], [EOS], [9, EOS], [EOS]]
    assert targets.int().tolist()[3] == [0, 0, 0, 0, 1, 1, 0]
    # Of all other tokens only the first of a row has nothing on its left.
    expected = (batch["input_ids"] != PAD) & ~targets
    expected[:, 0] = False
    assert torch.equal(given_of(batch), expected)


def test_language_modelling_rows_are_those_of_the_reference(
    collate: ARLMCollator, reference: dict[str, torch.Tensor]
) -> None:
    batch = collate([example([7, 8, 9]), example([10, 10, 7])])
    assert torch.equal(batch["input_ids"], reference["xlm.lm.input_ids"])
    assert batch["attention_mask"] is None
    assert reference["xlm.lm.attention_mask"].all()
    predicted = batch["input_ids"][:, 1:].masked_fill(~targets_of(batch)[:, 1:], -100)
    assert torch.equal(predicted, reference["xlm.lm.target_ids"][:, :-1])


def test_prompts_end_at_the_same_column(collate_prompts: ARLMPromptCollator) -> None:
    batch = collate_prompts(
        [
            {"seed": 0},
            example([7, 8], prompt=[9, 8, 7]),
            example([7, 8, 9], prompt=[10], num_fixed=2),
        ]
    )
    assert batch["input_ids"].tolist() == [[PAD, PAD, PAD, BOS], [9, 8, 7, BOS], [10, BOS, 7, 8]]
    assert batch["attention_mask"].tolist() == [[False, False, False, True], [True] * 4, [True] * 4]
    assert batch["num_fixed"].tolist() == [0, 0, 2]
    assert batch["budget"].tolist() == [6, 6, 4]


def test_fixed_tokens_must_be_a_prefix(collate: ARLMCollator, collate_prompts: ARLMPromptCollator) -> None:
    row: ARLMExample = {
        "seed": 0,
        "target_ids": torch.tensor([7, 8, 9]),
        "fixed": torch.tensor([True, False, True]),
    }
    for make in (collate, collate_prompts):
        with pytest.raises(ValueError, match=r"example 1 fixes the target tokens at \[0, 2\].*not a prefix"):
            make([example([7]), row])


def test_fixed_must_fit_its_target(collate: ARLMCollator) -> None:
    row: ARLMExample = {"seed": 0, "target_ids": torch.tensor([7, 8]), "fixed": torch.tensor([True])}
    with pytest.raises(ValueError, match="'fixed' of example 0 has 1 entries for 2 target tokens"):
        collate([row])


def test_limits_are_named() -> None:
    collate = ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=EOS, max_length=2)
    assert collate([example([7, 8])])["input_ids"].shape == (1, 4)
    with pytest.raises(ValueError, match="example 1 has 3 target tokens, the limit is max_length=2"):
        collate([example([7]), example([7, 8, 9])])
    collate_prompts = ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=2)
    with pytest.raises(ValueError, match="example 0 has 3 fixed target tokens, the limit is max_length=2"):
        collate_prompts([example([7, 8, 9], num_fixed=3)])
    # A reference is not read, so it may be of any length.
    assert collate_prompts([example([7, 8, 9])])["budget"].tolist() == [2]


def test_nothing_to_collate_is_refused(collate: ARLMCollator, collate_prompts: ARLMPromptCollator) -> None:
    for make in (collate, collate_prompts):
        with pytest.raises(ValueError, match="empty list"):
            make([])
    with pytest.raises(ValueError, match="example 0 has no 'target_ids': there is nothing to learn from"):
        collate([example(prompt=[7])])


def test_packed_blocks_hold_their_special_tokens_already() -> None:
    collate = ARLMCollator(pad_id=PAD, bos_id=None, eos_id=None)
    batch = collate([packed([BOS, 7, EOS], [BOS, 8, 9, EOS]), packed([BOS, 10, EOS], [9, 7])])
    assert batch["input_ids"].tolist() == [
        [BOS, 7, EOS, BOS, 8, 9, EOS],
        [BOS, 10, EOS, 9, 7, PAD, PAD],
    ]
    assert batch.get("segment_ids", torch.empty(0)).tolist() == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, -1, -1],
    ]
    assert targets_of(batch).int().tolist() == [[0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0, 0]]
    assert not given_of(batch).any()


def test_blocks_that_do_not_fit_are_refused(collate: ARLMCollator) -> None:
    block = packed([7, 8], [9])
    with pytest.raises(ValueError, match="set bos_id=None and eos_id=None"):
        collate([block])
    bare = ARLMCollator(pad_id=PAD, bos_id=None, eos_id=None)
    with pytest.raises(ValueError, match="some have none"):
        bare([block, example([7, 8])])
    misfits: list[ARLMExample] = [
        {**block, "prompt_ids": torch.tensor([7])},
        {**block, "target_ids": torch.tensor([7])},
    ]
    for wrong in misfits:
        with pytest.raises(ValueError, match="example 0 needs one entry of 'segment_ids' for each"):
            bare([wrong])


def test_generation_without_bos_starts_from_the_prompt() -> None:
    collate = ARLMPromptCollator(pad_id=PAD, bos_id=None, max_length=4)
    assert collate([example(prompt=[7, 8]), example(prompt=[9])])["input_ids"].tolist() == [[7, 8], [PAD, 9]]
    with pytest.raises(ValueError, match="example 1 gives nothing to start from: set bos_id"):
        collate([example(prompt=[7]), {"seed": 0}])
