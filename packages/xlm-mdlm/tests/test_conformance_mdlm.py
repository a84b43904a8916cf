"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType

import pytest
import torch
from torch import nn

from xlm.modules import Cosine, LogLinear, NoiseSchedule
from xlm.modules.samplers import RuleName, Sampler, compose
from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_mdlm import (
    MDLMBatch,
    MDLMCollator,
    MDLMDiT,
    MDLMLikelihoodCollator,
    MDLMLoss,
    MDLMPredictor,
    MDLMPromptBatch,
    MDLMPromptCollator,
    MDLMRotary,
)

PAD, CLS, MASK, EOS, BOS, SEP, UNK = range(7)


class _MDLMConformance(ConformanceSuite[MDLMBatch, MDLMPromptBatch]):
    """A fixed width: length is modelled."""

    ordinary_ids = range(7, 12)
    pad_id = PAD
    max_length = 7
    loss_padding = MappingProxyType(
        {"input_ids": PAD, "attention_mask": False, "target_ids": PAD, "masked": False, "may_end": False}
    )
    prompt_padding = MappingProxyType(
        {"input_ids": PAD, "attention_mask": False, "masked": False, "may_end": False}
    )
    target_length: int | None = 7
    default_length: int | None = None
    time_conditioning = False
    schedule: NoiseSchedule = LogLinear()
    sampler: Sampler | RuleName = compose("ancestral", num_steps=8)

    def build_model(self) -> nn.Module:
        return MDLMRotary(vocab_size=12, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> MDLMLoss:
        return MDLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=range(7))

    def build_predictor(self) -> MDLMPredictor:
        return MDLMPredictor(
            schedule=self.schedule,
            sampler=self.sampler,
            mask_id=MASK,
            pad_id=PAD,
            eos_id=EOS,
            suppressed_ids=range(7),
        )

    def build_loss_collator(self, kind: Kind) -> MDLMCollator:
        return MDLMCollator(
            schedule=self.schedule,
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            target_length=self.target_length,
        )

    def build_prompt_collator(self, kind: Kind) -> MDLMPromptCollator:
        return MDLMPromptCollator(
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            target_length=self.target_length,
            default_length=self.default_length,
        )

    def build_likelihood(self, kind: Kind) -> tuple[MDLMLoss, MDLMLikelihoodCollator]:
        collator = MDLMLikelihoodCollator(
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            target_length=self.target_length,
            time_conditioning=self.time_conditioning,
            schedule=self.schedule,
            num_draws=3,
        )
        return self.build_loss(), collator


class TestRotary(_MDLMConformance):
    """Ancestral sampling."""


class TestDiT(_MDLMConformance):
    """First-hitting sampling with the network of the paper, under another schedule."""

    schedule = Cosine()
    sampler = compose("first_hitting")

    def build_model(self) -> nn.Module:
        return MDLMDiT(vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8)


class TestDiTToldTheTime(_MDLMConformance):
    """Remasking with a network that is conditioned on time."""

    time_conditioning = True
    sampler = compose("remdm_cap", num_steps=12, eta=0.2)

    def build_model(self) -> nn.Module:
        return MDLMDiT(
            vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8, time_conditioning=True
        )


class TestRotaryByConfidence(_MDLMConformance):
    """The most confident cells first, a few at a time, with filters."""

    def build_predictor(self) -> MDLMPredictor:
        return MDLMPredictor(
            schedule=self.schedule,
            sampler=compose("confidence", rank="entropy", num_steps=3),
            mask_id=MASK,
            pad_id=PAD,
            eos_id=EOS,
            suppressed_ids=range(7),
            temperature=0.5,
            top_p=0.9,
        )


class TestKnownLength(_MDLMConformance):
    """As many cells as the target has tokens, for any length."""

    target_length = None
    default_length = 5

    def test_collators_refuse_too_long_targets(self) -> None:
        pytest.skip("a known length has no limit")


def test_rows_without_any_token_are_scored_and_generated() -> None:
    """No BOS, no EOS, an empty target: nothing to learn, nothing to pay, nothing to write."""
    model = MDLMRotary(vocab_size=12, d_model=16, num_layers=1, num_heads=2)
    score = MDLMLikelihoodCollator(bos_id=None, eos_id=None, num_draws=2, mask_id=MASK, pad_id=PAD)
    batch = score([{"seed": 0, "target_ids": torch.empty(0, dtype=torch.int64)}])
    loss = MDLMLoss(eos_id=None, mask_id=MASK, pad_id=PAD)
    assert loss(model, batch).loss_sum.item() == 0
    found = loss.likelihood(model, batch)
    assert (found.nll.tolist(), found.num_tokens.tolist()) == ([0.0], [0])
    prompts = MDLMPromptCollator(bos_id=None, eos_id=None, default_length=0, mask_id=MASK, pad_id=PAD)
    predict = MDLMPredictor(schedule=LogLinear(), sampler="ancestral", mask_id=MASK, pad_id=PAD, eos_id=None)
    written = predict(model, prompts([{"seed": 0}]), torch.tensor([0]))
    assert (written.lengths.tolist(), written.nfe.tolist()) == ([0], [0])


class TestSavingRotary(SavingSuite):
    def build_model(self, d_model: int) -> MDLMRotary:
        return MDLMRotary(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)


class TestSavingDiT(SavingSuite):
    def build_model(self, d_model: int) -> MDLMDiT:
        return MDLMDiT(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2, d_condition=8)
