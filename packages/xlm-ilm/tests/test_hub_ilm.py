"""Saving and loading the network."""

from pathlib import Path
from typing import cast

import torch

from xlm.modules import RotaryTransformer
from xlm.modules.testing import SavingSuite
from xlm_ilm import ILM


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> ILM:
        return ILM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)


class TestSavingLengthHead(SavingSuite):
    def build_model(self, d_model: int) -> ILM:
        return ILM(
            vocab_size=12, d_model=d_model, num_layers=1, num_heads=2, head="length", num_length_classes=8
        )


class TiedILM(ILM):
    """With one matrix for the embedding and the token head."""

    def __init__(self, *, vocab_size: int, d_model: int, num_layers: int, num_heads: int) -> None:
        super().__init__(vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, num_heads=num_heads)
        self.token_head.weight = cast("RotaryTransformer", self.transformer).embedding.weight


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    model = TiedILM(vocab_size=400, d_model=16, num_layers=1, num_heads=2)
    model.save_pretrained(tmp_path)
    num_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < num_bytes + 4000 < num_bytes + 4 * 400 * 16
    loaded = TiedILM.from_pretrained(tmp_path)
    assert loaded.token_head.weight is loaded.get_parameter("transformer.embedding.weight")
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(loaded(ids).token_logits, model.eval()(ids).token_logits)
