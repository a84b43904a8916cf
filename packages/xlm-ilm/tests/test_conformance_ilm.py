"""What every family has to show, and saving and loading its network."""

from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch

from xlm.modules import RotaryTransformer
from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_ilm import ILM, ILMBatch, ILMCollator, ILMLoss, ILMPredictor, ILMPromptBatch, ILMPromptCollator

SUPPRESSED = (0, 1, 2, 3, 4, 5, 6)


class _ILMConformance(ConformanceSuite[ILMBatch, ILMPromptBatch]):
    ordinary_ids = range(7, 12)
    pad_id = 0
    max_length = 7
    loss_padding = MappingProxyType({"input_ids": 0, "attention_mask": False, "open_slots": False})
    prompt_padding = loss_padding

    def build_model(self) -> ILM:
        return ILM(vocab_size=12, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> ILMLoss:
        return ILMLoss(row_weight="length_plus_one", suppressed_ids=SUPPRESSED)

    def build_predictor(self) -> ILMPredictor:
        return ILMPredictor(pad_id=0, suppressed_ids=SUPPRESSED, stop="draw", stop_temperature=2.0)

    def build_loss_collator(self, kind: Kind) -> ILMCollator:
        return ILMCollator(pad_id=0, cls_id=1, bos_id=4, max_length=7)

    def build_prompt_collator(self, kind: Kind) -> ILMPromptCollator:
        return ILMPromptCollator(pad_id=0, cls_id=1, bos_id=4, max_length=7)

    def build_likelihood(self, kind: Kind) -> tuple[ILMLoss, ILMCollator]:
        collator = ILMCollator(pad_id=0, cls_id=1, bos_id=4, max_length=7, num_draws=3)
        return ILMLoss(suppressed_ids=SUPPRESSED), collator


class TestStopHead(_ILMConformance):
    """The stop head, drawing slot and token together."""


class TestLengthHead(_ILMConformance):
    """The length head, drawing first the slot and then the token, two insertions per step."""

    def build_model(self) -> ILM:
        return ILM(vocab_size=12, d_model=16, num_layers=2, num_heads=2, head="length", num_length_classes=8)

    def build_loss(self) -> ILMLoss:
        return ILMLoss(head="length", suppressed_ids=SUPPRESSED)

    def build_predictor(self) -> ILMPredictor:
        return ILMPredictor(
            pad_id=0,
            suppressed_ids=SUPPRESSED,
            stop_threshold=0.5,
            sampling="two_stage",
            insertions_per_step=2,
        )


class TestJointFilters(_ILMConformance):
    """Filters on the joint distribution, and a limit of new tokens."""

    def build_predictor(self) -> ILMPredictor:
        return ILMPredictor(pad_id=0, suppressed_ids=SUPPRESSED, max_new_tokens=4, top_k=9, top_p=0.9)


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> ILM:
        return ILM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)


class TestRankedSlots(_ILMConformance):
    """Slots by confidence, several tokens per evaluation."""

    def build_predictor(self) -> ILMPredictor:
        return ILMPredictor(
            pad_id=0, suppressed_ids=SUPPRESSED, stop="draw", rank="top_prob", quota="threshold", tau=0.2
        )


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
