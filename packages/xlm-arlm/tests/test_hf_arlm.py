"""transformers' Auto classes give the network's own logits."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from xlm.modules import RotaryTransformer
from xlm_arlm import ARLM

transformers = pytest.importorskip("transformers", reason="the extra xlm-arlm[transformers] is not installed")


@pytest.fixture
def model(tmp_path: Path) -> ARLM:
    torch.manual_seed(0)
    model = ARLM(vocab_size=12, d_model=16, num_layers=2, num_heads=2, activation="relu", rotary_dim=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    return model


def test_auto_model_for_causal_lm(model: ARLM, tmp_path: Path) -> None:
    import xlm_arlm.hf_arlm as hf_arlm

    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, hf_arlm.ARLMForCausalLM)
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        output = loaded(ids, attention_mask=mask, labels=torch.where(mask.bool(), ids, -100))
        expected = model(ids, mask.bool())
    assert torch.equal(output.logits, expected)
    losses = torch.nn.functional.cross_entropy(
        torch.cat([expected[0, 1:-1], expected[1, :-1]]), torch.cat([ids[0, 2:], ids[1, 1:]])
    )
    torch.testing.assert_close(output.loss, losses)

    # Greedy generation from left-padded prompts, against a loop without padding.
    written = cast("Any", loaded).generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    for row, start in zip(written.tolist(), ([5, 6, 7], [1, 2, 3, 4, 5]), strict=True):
        text = list(start)
        for _ in range(4):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        assert row[-len(text) :] == text

    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(ids, attention_mask=mask).logits, expected)


def test_a_network_with_a_trunk(tmp_path: Path) -> None:
    import xlm_arlm.hf_arlm as hf_arlm

    trunk = RotaryTransformer(vocab_size=12, d_model=16, num_layers=2, num_heads=2, norm_eps=0.1, causal=True)
    model = ARLM(vocab_size=12, trunk=trunk).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, hf_arlm.ARLMForCausalLM)
    assert (loaded.config.hidden_size, loaded.config.num_hidden_layers) == (16, 2)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids))
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(ids).logits, loaded(ids).logits)
