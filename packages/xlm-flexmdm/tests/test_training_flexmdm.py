"""A recorded training run, and the example of the README as it stands."""

import re
from pathlib import Path
from typing import cast

import pytest
import torch

from xlm.modules import LogLinear, row_seeds
from xlm_flexmdm import (
    FlexMDM,
    FlexMDMCollator,
    FlexMDMExample,
    FlexMDMLikelihood,
    FlexMDMLoss,
    FlexMDMPrediction,
    Interpolant,
)
from xlm_flexmdm.model_flexmdm import Head

PAD, MASK, BOS, FIRST, NUM_TOKENS = 0, 1, 2, 3, 6
# Nats per token at steps 0, 6, 12, 18, 24 on a CPU.
RECORDED: dict[Head, list[float]] = {
    "expectation": [2.950658, 2.787719, 2.997963, 2.403299, 2.161514],
    "distribution": [3.592773, 3.302949, 3.820892, 3.365708, 3.102738],
}


def _counting_examples(epoch: int, number: int = 64) -> list[FlexMDMExample]:
    """Prompt: a start and a length; target: counting up from the start, modulo the number of tokens."""
    examples: list[FlexMDMExample] = []
    for row, seed in enumerate(row_seeds(7, epoch, torch.arange(number))):
        start, length = (row + epoch) % NUM_TOKENS, 2 + (row * 5 + epoch) % 4
        examples.append(
            {
                "seed": int(seed),
                "place": epoch * number + row,
                "prompt_ids": torch.tensor([FIRST + start, FIRST + length]),
                "target_ids": FIRST + (start + torch.arange(length)) % NUM_TOKENS,
            }
        )
    return examples


@pytest.mark.parametrize("head", ["expectation", "distribution"])
def test_recorded_loss_curve(head: Head) -> None:
    interpolant = Interpolant(LogLinear(eps=0), LogLinear(eps=0))
    collate = FlexMDMCollator(interpolant=interpolant, pad_id=PAD, mask_id=MASK, bos_id=BOS, max_length=6)
    loss = FlexMDMLoss(mask_id=MASK, suppressed_ids=[PAD, BOS])
    state = torch.get_rng_state()
    torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
    model = FlexMDM(
        vocab_size=FIRST + NUM_TOKENS, d_model=32, num_layers=2, num_heads=4, max_length=6, head=head
    ).double()
    torch.set_rng_state(state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    curve: list[float] = []
    for step in range(25):
        output = loss(model, collate(_counting_examples(step)))
        mean = output.loss_sum / output.loss_count
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        curve.append(float(mean.detach()))
    found = [round(nats, 6) for nats in curve[::6]]
    # Steps add up the rounding of a processor: later losses may differ more than the first.
    assert found[0] == pytest.approx(RECORDED[head][0], rel=1e-4)
    assert found == pytest.approx(RECORDED[head], rel=5e-3), f"record this if the change is meant: {found}"


def test_readme_example_learns_its_words() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    state = torch.get_rng_state()
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    torch.set_rng_state(state)

    loaded, trained = cast("FlexMDMPrediction", names["again"]), cast("FlexMDMPrediction", names["written"])
    assert torch.equal(loaded.ids, trained.ids), "a loaded network writes something else"
    words, texts = cast("list[str]", names["WORDS"]), cast("list[str]", names["texts"])
    right = [text in words for text in texts]
    assert sum(right) >= 60, f"{sum(right)} of {len(right)} texts are words"
    assert set(words) <= set(texts)
    nll = cast("FlexMDMLikelihood", names["found"]).nll
    assert 0.9 < float(nll.mean()) < 2.2, f"{nll} nats; log 3 is the best mean"
