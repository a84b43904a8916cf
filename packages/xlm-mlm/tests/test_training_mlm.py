"""A recorded training run, and the example of the README as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.modules import Columns, PromptCache, row_seeds
from xlm.modules.samplers import RuleName
from xlm.modules.testing import WholeRows
from xlm_mlm import (
    MLM,
    MLMCollator,
    MLMExample,
    MLMLikelihoodCollator,
    MLMLoss,
    MLMPrediction,
    MLMPredictor,
    MLMPromptCollator,
)

PAD, CLS, MASK, EOS, BOS = range(5)
FIRST, NUM_TOKENS = 5, 6
# Mean over masked cells at steps 0, 5, 10, ..., 25 on a CPU.
RECORDED = [2.085254, 1.815173, 1.540528, 1.276741, 1.238092, 1.130225]


def counting_examples(epoch: int, number: int = 32) -> list[MLMExample]:
    """Prompt: a start and a length; target: counting up from the start, modulo the number of tokens."""
    examples: list[MLMExample] = []
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


IDS: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "eos_id": EOS}
SUPPRESSED = [CLS, BOS]


def train(model: MLM) -> list[float]:
    """Mean over masked cells at each of 26 steps."""
    collate = MLMCollator(**IDS, bos_id=BOS, target_length=6)
    loss = MLMLoss(**IDS, suppressed_ids=SUPPRESSED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve: list[float] = []
    for step in range(26):
        output = loss(model, collate(counting_examples(step)))
        mean = output.loss_sum / output.loss_count
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        curve.append(mean.item())
    return curve


def test_recorded_loss_curve() -> None:
    torch.manual_seed(0)
    curve = train(MLM(vocab_size=FIRST + NUM_TOKENS, d_model=64, num_layers=2, num_heads=4))
    found = [round(nats, 6) for nats in curve[::5]]
    # Steps add up the rounding of a processor: later losses may differ more than the first.
    assert found[0] == pytest.approx(RECORDED[0], rel=1e-4)
    assert found == pytest.approx(RECORDED, rel=5e-3), f"record this if the change is meant: {found}"


def prompted_examples() -> list[MLMExample]:
    """Prompts of 0 to 4 tokens, and given tokens in some targets."""
    examples = counting_examples(99)
    for row, example in enumerate(examples):
        example["prompt_ids"] = torch.tensor([FIRST + row % 4, FIRST + 1, FIRST, FIRST + 2])[: row % 5]
        if row % 3 == 0:
            example["target_ids"] = torch.tensor([FIRST, FIRST + 1, FIRST + 2])
            example["fixed"] = torch.arange(3) == row % 2
    return examples


@pytest.mark.parametrize(
    ("sampler", "temperature"), [("any_order", 1.0), ("confidence", 0.0), ("threshold", 1.0), ("p2", 1.0)]
)
def test_a_prompt_that_is_read_once_gives_the_samples_of_whole_rows(
    sampler: RuleName, temperature: float
) -> None:
    """In float64 all logits are the same; in float32 all samples of a trained network."""
    torch.manual_seed(0)
    model = MLM(
        vocab_size=FIRST + NUM_TOKENS, d_model=64, num_layers=2, num_heads=4, prompt_sees_target=False
    )
    curve = train(model)
    assert sum(curve[-10:]) < 0.9 * sum(curve[:10])
    examples = prompted_examples()
    batch = MLMPromptCollator(**IDS, bos_id=BOS, target_length=6)(examples)
    predictor = MLMPredictor(**IDS, suppressed_ids=SUPPRESSED, sampler=sampler, temperature=temperature)
    seeds = torch.arange(len(examples))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        network = model.to(dtype).eval()
        found = predictor(network, batch, seeds, trace=True)
        expected = predictor(WholeRows(network, num_layers=2, tolerance=tolerance), batch, seeds, trace=True)
        assert found.nfe.min() > 0
        assert found.calls is not None
        assert torch.equal(found.calls, found.nfe + 1), "the prompt is read in a call of its own"
        for name in ("ids", "lengths", "nfe"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        for name in ("step", "row", "position", "token"):
            assert torch.equal(getattr(found.trace, name), getattr(expected.trace, name)), name


def test_the_likelihood_is_that_of_the_distribution_that_is_sampled() -> None:
    """One cell: its probability after the prompt that was read once."""
    torch.manual_seed(0)
    model = (
        MLM(vocab_size=FIRST + NUM_TOKENS, d_model=64, num_layers=2, num_heads=4, prompt_sees_target=False)
        .double()
        .eval()
    )
    examples = prompted_examples()
    for example in examples:
        example["target_ids"] = torch.tensor([FIRST + 3])
        example.pop("fixed", None)
    batch = MLMLikelihoodCollator(**IDS, bos_id=BOS)(examples)
    prompts = MLMPromptCollator(**IDS, bos_id=BOS)(examples)
    given = Columns.of(torch.arange(prompts["input_ids"].shape[1]) < prompts["target_start"].unsqueeze(1))
    cache = PromptCache()
    with torch.no_grad():
        nll = MLMLoss(**IDS, suppressed_ids=SUPPRESSED).likelihood(model, batch).nll
        model(given.take(prompts["input_ids"]), given.exists, cache=cache)
        logits = model(torch.full((len(examples), 1), MASK), cache=cache)[:, 0]
    logits[:, [MASK, PAD, EOS, *SUPPRESSED]] = -torch.inf
    torch.testing.assert_close(nll, -logits.log_softmax(-1)[:, FIRST + 3], rtol=0, atol=1e-12)


def test_readme_example_learns_to_count() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    prediction, questions = names["prediction"], names["questions"]
    assert isinstance(prediction, MLMPrediction)
    again = names["again"]
    assert isinstance(again, MLMPrediction)
    assert again.ids.equal(prediction.ids), "a loaded network writes something else"
    assert isinstance(questions, list)
    examples: list[MLMExample] = questions
    answers = [ids[:length] for ids, length in zip(prediction.ids, prediction.lengths.tolist(), strict=True)]
    right = [
        answer.tolist() == example["target_ids"].tolist()
        for answer, example in zip(answers, examples, strict=True)
        if "target_ids" in example
    ]
    assert len(right) >= 50
    assert sum(right) >= 0.9 * len(right), f"{sum(right)} of {len(right)} answers are right"
    assert max(prediction.nfe.tolist()) == 3
