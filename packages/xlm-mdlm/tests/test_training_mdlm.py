"""A short run of each network on a fixed synthetic task, recorded so that a change of its numbers is seen."""

import pytest
import torch

from xlm.modules import LogLinear, row_seeds
from xlm_mdlm import MDLMCollator, MDLMDiT, MDLMExample, MDLMLoss, MDLMRotary

PAD, CLS, MASK, EOS, BOS = range(5)
FIRST, NUM_TOKENS = 5, 6
# Nats per cell at steps 0, 5, 10, ..., 25 on a CPU.
RECORDED = {
    "rotary": [1.695372, 2.776447, 2.101666, 1.643319, 1.579251, 1.580299],
    "dit": [1.690755, 2.769726, 1.899546, 1.348240, 1.343792, 1.398991],
}


def counting_examples(epoch: int, number: int = 32) -> list[MDLMExample]:
    """Prompt: a start and a length; target: counting up from the start, modulo the number of tokens."""
    examples: list[MDLMExample] = []
    for row, seed in enumerate(row_seeds(7, epoch, torch.arange(number)).tolist()):
        start, length = (row + epoch) % NUM_TOKENS, 2 + (row * 5 + epoch) % 4
        examples.append(
            {
                "seed": seed,
                "place": epoch * number + row,
                "prompt_ids": torch.tensor([FIRST + start, FIRST + length]),
                "target_ids": FIRST + (start + torch.arange(length)) % NUM_TOKENS,
            }
        )
    return examples


@pytest.mark.parametrize("name", ["rotary", "dit"])
def test_recorded_loss_curve(name: str) -> None:
    collate = MDLMCollator(
        schedule=LogLinear(), mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, target_length=6
    )
    loss = MDLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[CLS, BOS])
    make = MDLMRotary if name == "rotary" else MDLMDiT
    model = make(vocab_size=FIRST + NUM_TOKENS, d_model=32, num_layers=2, num_heads=2)
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
    assert found == pytest.approx(RECORDED[name], rel=1e-4), f"record this if the change is meant: {found}"
    assert sum(curve[-10:]) < 0.9 * sum(curve[:10])
