"""What every family has to show, and saving and loading its network."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from xlm.modules.testing import ConformanceSuite, Edge, Kind, SavingSuite
from xlm_arlm import (
    ARLM,
    ARLMBatch,
    ARLMCollator,
    ARLMLoss,
    ARLMPredictor,
    ARLMPromptBatch,
    ARLMPromptCollator,
)

PAD, EOS, BOS = 0, 3, 4
SPECIAL = range(7)


class TestConformance(ConformanceSuite[ARLMBatch, ARLMPromptBatch]):
    ordinary_ids = range(7, 12)
    pad_id = PAD
    max_length = 6
    loss_padding: ClassVar = {"input_ids": PAD, "attention_mask": 0}
    prompt_padding: ClassVar = {"input_ids": PAD, "attention_mask": 0}
    prompt_padding_side = "left"
    # Fixed tokens that are a prefix have tests of their own.
    kinds: ClassVar[Sequence[Kind]] = ("language_modelling", "prefix", "unconditional")
    refused_by_loss: ClassVar[Sequence[Edge]] = ("no_ids", "prompt_only")

    def build_model(self) -> nn.Module:
        return ARLM(vocab_size=12, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> ARLMLoss:
        return ARLMLoss()

    def build_predictor(self) -> ARLMPredictor:
        return ARLMPredictor(pad_id=PAD, eos_id=EOS, suppressed_ids=SPECIAL)

    def build_loss_collator(self, kind: Kind) -> ARLMCollator:
        return ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=EOS, max_length=self.max_length)

    def build_prompt_collator(self, kind: Kind) -> ARLMPromptCollator:
        return ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=self.max_length)

    def build_likelihood(self, kind: Kind) -> tuple[ARLMLoss, ARLMCollator]:
        return self.build_loss(), self.build_loss_collator(kind)


class TestConformanceWithPromptLoss(TestConformance):
    def build_loss(self) -> ARLMLoss:
        return ARLMLoss(loss_on_prompt=True)


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> ARLM:
        return ARLM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)
