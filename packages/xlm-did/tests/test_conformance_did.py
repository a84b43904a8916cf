"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType

import torch

from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_did import DID, DIDBatch, DIDCollator, DIDLoss, DIDPredictor, DIDPromptBatch, DIDPromptCollator

SUPPRESSED = (0, 1, 2, 3, 4, 5, 6)


class _DIDConformance(ConformanceSuite[DIDBatch, DIDPromptBatch]):
    ordinary_ids = range(7, 12)
    pad_id = 0
    max_length = 7
    loss_padding = MappingProxyType({"input_ids": 0, "attention_mask": False, "open_slots": False})
    prompt_padding = loss_padding

    def build_model(self) -> DID:
        return DID(vocab_size=12, max_missing=7, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> DIDLoss:
        return DIDLoss(suppressed_ids=SUPPRESSED)

    def build_predictor(self) -> DIDPredictor:
        return DIDPredictor(pad_id=0, suppressed_ids=SUPPRESSED)

    def build_loss_collator(self, kind: Kind) -> DIDCollator:
        return DIDCollator(pad_id=0, cls_id=1, bos_id=4, max_length=7)

    def build_prompt_collator(self, kind: Kind) -> DIDPromptCollator:
        return DIDPromptCollator(pad_id=0, cls_id=1, bos_id=4, max_length=7)

    def build_likelihood(self, kind: Kind) -> tuple[DIDLoss, DIDCollator]:
        collator = DIDCollator(pad_id=0, cls_id=1, bos_id=4, max_length=7, num_draws=3)
        return DIDLoss(suppressed_ids=SUPPRESSED), collator


class TestFirstHitting(_DIDConformance):
    """One token at a time, slot and token together."""


class TestSteps(_DIDConformance):
    """Several tokens per evaluation, drawing first the slot and then the token."""

    def build_predictor(self) -> DIDPredictor:
        return DIDPredictor(pad_id=0, suppressed_ids=SUPPRESSED, num_steps=3, sampling="two_stage")


class TestJointFilters(_DIDConformance):
    """Filters on the joint distribution, and a limit of new tokens."""

    def build_predictor(self) -> DIDPredictor:
        return DIDPredictor(pad_id=0, suppressed_ids=SUPPRESSED, max_new_tokens=4, top_k=9, top_p=0.9)


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> DID:
        return DID(vocab_size=12, max_missing=7, d_model=d_model, num_layers=2, num_heads=2)

    def run(self, model: torch.nn.Module) -> object:
        time = torch.tensor([0.3, 0.6], dtype=torch.float64)
        return model(torch.arange(12).reshape(2, 6), time=time)
