"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType

import torch
from torch import nn

from xlm.modules import Cosine, LogLinear
from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_flexmdm import (
    FlexMDM,
    FlexMDMBatch,
    FlexMDMCollator,
    FlexMDMLikelihoodCollator,
    FlexMDMLoss,
    FlexMDMPredictor,
    FlexMDMPromptBatch,
    FlexMDMPromptCollator,
    Interpolant,
)

SUPPRESSED = (0, 1, 2, 3, 4, 5, 6)
LINEAR = Interpolant(LogLinear(eps=0), LogLinear(eps=0))


class _FlexMDMConformance(ConformanceSuite[FlexMDMBatch, FlexMDMPromptBatch]):
    ordinary_ids = range(7, 12)
    pad_id = 0
    max_length = 7
    loss_padding = MappingProxyType(
        {
            "input_ids": 0,
            "attention_mask": False,
            "given": False,
            "masked": False,
            "clean_ids": 0,
            "open_slots": False,
            "gaps": 0,
        }
    )
    prompt_padding = MappingProxyType({"input_ids": 0, "attention_mask": False, "open_slots": False})
    interpolant = LINEAR

    def build_model(self) -> FlexMDM:
        return FlexMDM(vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8, max_length=7)

    def build_loss(self) -> FlexMDMLoss:
        return FlexMDMLoss(mask_id=2, suppressed_ids=SUPPRESSED)

    def build_predictor(self) -> FlexMDMPredictor:
        return FlexMDMPredictor(
            interpolant=self.interpolant, mask_id=2, pad_id=0, suppressed_ids=SUPPRESSED, num_steps=4
        )

    def build_loss_collator(self, kind: Kind) -> FlexMDMCollator:
        return FlexMDMCollator(interpolant=self.interpolant, pad_id=0, mask_id=2, bos_id=4, max_length=7)

    def build_prompt_collator(self, kind: Kind) -> FlexMDMPromptCollator:
        return FlexMDMPromptCollator(pad_id=0, mask_id=2, bos_id=4, max_length=7)

    def build_likelihood(self, kind: Kind) -> tuple[FlexMDMLoss, FlexMDMLikelihoodCollator]:
        collator = FlexMDMLikelihoodCollator(
            interpolant=self.interpolant, pad_id=0, mask_id=2, bos_id=4, max_length=7, num_draws=3
        )
        return FlexMDMLoss(mask_id=2, suppressed_ids=SUPPRESSED), collator


class TestExpectationHead(_FlexMDMConformance):
    """The expectation head, each mask unmasked by itself."""


class TestDistributionHead(_FlexMDMConformance):
    """The distribution head, two different schedules, tau-leaping, the most confident masks first."""

    interpolant = Interpolant(Cosine(eps=0), LogLinear(eps=0), time_input="alpha")

    def build_model(self) -> FlexMDM:
        return FlexMDM(
            vocab_size=12,
            d_model=16,
            num_layers=2,
            num_heads=2,
            d_condition=8,
            max_length=7,
            head="distribution",
        )

    def build_predictor(self) -> FlexMDMPredictor:
        return FlexMDMPredictor(
            interpolant=self.interpolant,
            mask_id=2,
            pad_id=0,
            suppressed_ids=SUPPRESSED,
            num_steps=4,
            sampler="tau_leaping",
            rank="margin",
            top_k=3,
            top_p=0.9,
        )


class TestLimitedRoom(_FlexMDMConformance):
    """Rows that are soon full, the leftmost mask first."""

    def build_predictor(self) -> FlexMDMPredictor:
        return FlexMDMPredictor(
            interpolant=self.interpolant,
            mask_id=2,
            pad_id=0,
            suppressed_ids=SUPPRESSED,
            num_steps=4,
            max_new_tokens=2,
            rank="left_to_right",
            temperature=0.0,
        )


class TestPosteriorTargets(_FlexMDMConformance):
    """The tokens and gaps of all ways to a row as targets; masks above a threshold are unmasked early."""

    def build_predictor(self) -> FlexMDMPredictor:
        return FlexMDMPredictor(
            interpolant=self.interpolant,
            mask_id=2,
            pad_id=0,
            suppressed_ids=SUPPRESSED,
            num_steps=8,
            rank="top_prob",
            quota="threshold",
            tau=0.21,
        )

    def build_loss(self) -> FlexMDMLoss:
        return FlexMDMLoss(mask_id=2, suppressed_ids=SUPPRESSED, targets="posterior")


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> FlexMDM:
        return FlexMDM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2, d_condition=8, max_length=7)

    def run(self, model: nn.Module) -> object:
        cells = torch.tensor([0, 3, 7])
        ids, time = torch.arange(12).reshape(2, 6), torch.tensor([0.2, 0.9])
        return model(ids, time, 1 - time, token_positions=cells, slot_positions=cells)
