"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType

import torch

from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_editflow import (
    EditFlow,
    EditFlowBatch,
    EditFlowCollator,
    EditFlowLoss,
    EditFlowPredictor,
    EditFlowPromptBatch,
    EditFlowPromptCollator,
    RandomTokens,
)
from xlm_editflow.sources_editflow import Source

SUPPRESSED = (0, 1, 2, 3, 4, 5, 6)
NOISE = RandomTokens(max_tokens=4, vocab_size=12, suppressed_ids=SUPPRESSED)


class _EditFlowConformance(ConformanceSuite[EditFlowBatch, EditFlowPromptBatch]):
    ordinary_ids = range(7, 12)
    pad_id = 0
    max_length = 7
    loss_padding = MappingProxyType(
        {"input_ids": 0, "attention_mask": False, "open_slots": False, "editable": False}
    )
    prompt_padding = loss_padding
    source: Source = NOISE

    def build_model(self) -> EditFlow:
        return EditFlow(vocab_size=12, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> EditFlowLoss:
        return EditFlowLoss(suppressed_ids=SUPPRESSED)

    def build_predictor(self) -> EditFlowPredictor:
        return EditFlowPredictor(pad_id=0, suppressed_ids=SUPPRESSED, num_steps=4)

    def build_loss_collator(self, kind: Kind) -> EditFlowCollator:
        return EditFlowCollator(pad_id=0, bos_id=5, max_length=7, source=self.source)

    def build_prompt_collator(self, kind: Kind) -> EditFlowPromptCollator:
        return EditFlowPromptCollator(pad_id=0, bos_id=5, max_length=7, source=self.source)

    def build_likelihood(self, kind: Kind) -> tuple[EditFlowLoss, EditFlowCollator]:
        collate = EditFlowCollator(pad_id=0, bos_id=5, max_length=7, source=self.source, num_draws=3)
        return self.build_loss(), collate


class TestConformance(_EditFlowConformance):
    pass


class TestConformanceOfFirstHitting(_EditFlowConformance):
    def build_predictor(self) -> EditFlowPredictor:
        return EditFlowPredictor(
            pad_id=0, suppressed_ids=SUPPRESSED, num_steps=None, num_points=3, last_time=0.5
        )


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> EditFlow:
        return EditFlow(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)

    def run(self, model: torch.nn.Module) -> object:
        time = torch.tensor([0.3, 0.6], dtype=torch.float64)
        cells = torch.tensor([0, 7])
        return model(torch.arange(12).reshape(2, 6), time=time, insert_at=cells, substitute_at=cells)
