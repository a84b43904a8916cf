"""transformers' Auto classes give the network's own logits."""

from pathlib import Path

import pytest
import torch

from xlm.modules import RotaryTransformer
from xlm_mlm import MLM

transformers = pytest.importorskip("transformers", reason="the extra xlm-mlm[transformers] is not installed")


def test_auto_model_for_masked_lm(tmp_path: Path) -> None:
    import xlm_mlm.hf_mlm as hf_mlm

    torch.manual_seed(0)
    model = MLM(vocab_size=12, d_model=16, num_layers=2, num_heads=2, activation="relu", rotary_dim=4).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(loaded, hf_mlm.MLMForMaskedLM)
    ids = torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    labels = torch.full_like(ids, -100)
    labels[0, 1], labels[1, 3] = 9, 8
    with torch.no_grad():
        output = loaded(ids, attention_mask=mask, labels=labels)
        expected = model(ids, mask.bool())
    assert torch.equal(output.logits, expected)
    losses = -expected.log_softmax(-1)[[0, 1], [1, 3], [9, 8]]
    torch.testing.assert_close(output.loss, losses.mean())


def test_a_network_with_a_trunk(tmp_path: Path) -> None:
    import xlm_mlm.hf_mlm as hf_mlm

    trunk = RotaryTransformer(vocab_size=12, d_model=16, num_layers=2, num_heads=2, norm_eps=0.1)
    model = MLM(vocab_size=12, trunk=trunk).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(loaded, hf_mlm.MLMForMaskedLM)
    assert (loaded.config.hidden_size, loaded.config.num_hidden_layers) == (16, 2)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids))
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_a_prompt_that_does_not_see_the_target_is_refused(tmp_path: Path) -> None:
    import xlm_mlm.hf_mlm as hf_mlm

    assert hf_mlm.MLMConfig().prompt_sees_target
    model = MLM(vocab_size=12, d_model=16, num_layers=1, num_heads=2, prompt_sees_target=False)
    model.save_pretrained(tmp_path)
    assert not MLM.from_pretrained(tmp_path).prompt_sees_target
    with pytest.raises(
        ValueError, match=r"prompt_sees_target=False.*load it with xlm_mlm\.MLM\.from_pretrained"
    ):
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
