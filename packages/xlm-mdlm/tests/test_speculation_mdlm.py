"""Speculation with networks in float64: the same texts, for fewer calls."""

from typing import Any

import pytest
import torch

from xlm.modules import LogLinear
from xlm.modules.samplers import RuleName, compose
from xlm_mdlm import MDLMDiT, MDLMExample, MDLMPredictor, MDLMPromptCollator, MDLMRotary

PAD, MASK, EOS, BOS, FIRST = range(5)
ROWS = 60


def network(kind: type[MDLMDiT] | type[MDLMRotary], **options: Any) -> MDLMDiT | MDLMRotary:
    torch.manual_seed(1)
    model = kind(vocab_size=FIRST + 6, d_model=16, num_layers=1, num_heads=2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.double().eval()


MODELS = {
    "dit": lambda: network(MDLMDiT),
    "rotary": lambda: network(MDLMRotary),
    "prompts read once": lambda: network(MDLMRotary, prompt_sees_target=False),
}


@pytest.mark.parametrize("window_length", [None, 6])
@pytest.mark.parametrize("rule", ["first_hitting", "remdm_cap"])
@pytest.mark.parametrize("name", MODELS)
def test_the_texts_are_those_without(name: str, rule: RuleName, window_length: int | None) -> None:
    collate = MDLMPromptCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, target_length=10)
    examples: list[MDLMExample] = [
        {"seed": seed, "prompt_ids": torch.arange(FIRST, FIRST + seed % 4)} for seed in range(ROWS)
    ]
    batch, model = collate(examples), MODELS[name]()
    found: list[Any] = []
    for speculate in (None, 4):
        predict = MDLMPredictor(
            schedule=LogLinear(),
            sampler=compose(rule, num_steps=20 if rule == "remdm_cap" else None, speculate=speculate),
            mask_id=MASK,
            pad_id=PAD,
            eos_id=EOS,
            suppressed_ids=[BOS],
            temperature=0.8,
            window_length=window_length,
            stride=None if window_length is None else 3,
        )
        found.append(predict(model, batch, torch.arange(ROWS) + 5, trace=True))
    plain, fast = found
    assert torch.equal(fast.ids, plain.ids)
    assert torch.equal(fast.lengths, plain.lengths)
    assert torch.equal(fast.nfe, plain.nfe)
    for field in ("step", "row", "position", "token"):
        assert torch.equal(getattr(fast.trace, field), getattr(plain.trace, field))
    assert float(fast.calls.sum()) < 0.9 * float(plain.calls.sum())
    assert torch.equal(plain.states, plain.nfe)
    assert bool((fast.states >= fast.nfe).all())
