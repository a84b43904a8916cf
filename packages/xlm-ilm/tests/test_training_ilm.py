"""A short run on a fixed synthetic task, recorded so that a change of its numbers is seen."""

import pytest
import torch

from xlm.modules import row_seeds
from xlm_ilm import ILM, ILMCollator, ILMExample, ILMLoss

PAD, CLS, BOS = range(3)
FIRST, NUM_TOKENS = 3, 6
# Mean over rows at steps 0, 5, 10, ..., 25 on a CPU.
RECORDED = [2.928708, 2.215212, 2.167159, 1.91285, 1.783747, 1.702382]


def counting_examples(epoch: int, number: int = 32) -> list[ILMExample]:
    """Prompt: a start and a length; target: counting up from the start, modulo the number of tokens."""
    examples: list[ILMExample] = []
    for row, seed in enumerate(row_seeds(7, epoch, torch.arange(number)).tolist()):
        start, length = (row + epoch) % NUM_TOKENS, 2 + (row * 5 + epoch) % 4
        examples.append(
            {
                "seed": seed,
                "prompt_ids": torch.tensor([FIRST + start, FIRST + length]),
                "target_ids": FIRST + (start + torch.arange(length)) % NUM_TOKENS,
            }
        )
    return examples


def test_recorded_loss_curve() -> None:
    collate = ILMCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS)
    loss = ILMLoss(suppressed_ids=[PAD, CLS, BOS])
    torch.manual_seed(0)
    model = ILM(vocab_size=FIRST + NUM_TOKENS, d_model=64, num_layers=2, num_heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve: list[float] = []
    for step in range(26):
        output = loss(model, collate(counting_examples(step)))
        mean = output.loss_sum / output.loss_count
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        curve.append(mean.item())
    found = [round(nats, 6) for nats in curve[::5]]
    assert found == pytest.approx(RECORDED, rel=1e-4), f"record this if the change is meant: {found}"
