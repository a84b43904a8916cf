"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from xlm.modules import Cosine, LogLinear, NoiseSchedule
from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_udlm import (
    UDLMBatch,
    UDLMCollator,
    UDLMDiT,
    UDLMLikelihoodCollator,
    UDLMLoss,
    UDLMPredictor,
    UDLMPromptBatch,
    UDLMPromptCollator,
    UDLMSampler,
)
from xlm_udlm.types_udlm import Output

PAD, CLS, MASK, EOS, BOS, SEP, UNK = range(7)
TOKENS: dict[str, Any] = {"vocab_size": 12, "pad_id": PAD, "eos_id": EOS}


class _UDLMConformance(ConformanceSuite[UDLMBatch, UDLMPromptBatch]):
    """A fixed width: length is modelled."""

    ordinary_ids = range(7, 12)
    pad_id = PAD
    max_length = 7
    loss_padding = MappingProxyType(
        {"input_ids": PAD, "attention_mask": False, "target_ids": PAD, "may_end": False}
    )
    prompt_padding = MappingProxyType(
        {"input_ids": PAD, "attention_mask": False, "free": False, "may_end": False}
    )
    target_length: int | None = 7
    default_length: int | None = None
    schedule: NoiseSchedule = LogLinear()
    sampler = UDLMSampler(num_steps=4)
    output: Output = "leave_one_out"

    def build_model(self) -> nn.Module:
        return UDLMDiT(vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8)

    def build_loss(self) -> UDLMLoss:
        return UDLMLoss(**TOKENS, suppressed_ids=range(7), output=self.output)

    def build_predictor(self) -> UDLMPredictor:
        return UDLMPredictor(
            **TOKENS,
            schedule=self.schedule,
            sampler=self.sampler,
            suppressed_ids=range(7),
            output=self.output,
        )

    def build_loss_collator(self, kind: Kind) -> UDLMCollator:
        return UDLMCollator(
            **TOKENS,
            schedule=self.schedule,
            bos_id=BOS,
            suppressed_ids=range(7),
            target_length=self.target_length,
        )

    def build_prompt_collator(self, kind: Kind) -> UDLMPromptCollator:
        return UDLMPromptCollator(
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            target_length=self.target_length,
            default_length=self.default_length,
        )

    def build_likelihood(self, kind: Kind) -> tuple[UDLMLoss, UDLMLikelihoodCollator]:
        collator = UDLMLikelihoodCollator(
            **TOKENS,
            schedule=self.schedule,
            bos_id=BOS,
            suppressed_ids=range(7),
            target_length=self.target_length,
            num_draws=3,
        )
        return self.build_loss(), collator


class TestAncestral(_UDLMConformance):
    """The network of the paper with its sampler."""


class TestDenoiserWithPsi(_UDLMConformance):
    """A network without the time whose output is that of a denoiser; a corrector, filters, a greedy end."""

    schedule = Cosine()
    output = "denoiser"
    sampler = UDLMSampler("psi_cap", num_steps=5, eta=0.1, hold_alpha=0.9, final="greedy")

    def build_model(self) -> nn.Module:
        return UDLMDiT(
            vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8, time_conditioning=False
        )

    def build_predictor(self) -> UDLMPredictor:
        return UDLMPredictor(
            **TOKENS,
            schedule=self.schedule,
            sampler=self.sampler,
            suppressed_ids=range(7),
            output=self.output,
            temperature=0.7,
            top_p=0.9,
        )


class TestKnownLength(_UDLMConformance):
    """As many cells as the target has tokens, for any length; with Gibbs moves."""

    target_length = None
    default_length = 5
    sampler = UDLMSampler(num_steps=3, gibbs_moves=1)

    def test_collators_refuse_too_long_targets(self) -> None:
        pytest.skip("a known length has no limit")

    def test_likelihood_of_the_sampler_belongs_to_the_text(self) -> None:
        pytest.skip("Gibbs moves have no likelihood")


def test_rows_without_any_token_are_scored_and_generated() -> None:
    """No BOS, no EOS, an empty target: nothing to learn, nothing to pay, nothing to write."""
    model = UDLMDiT(vocab_size=12, d_model=16, num_layers=1, num_heads=2)
    tokens: dict[str, Any] = {"vocab_size": 12, "pad_id": PAD, "eos_id": None}
    score = UDLMLikelihoodCollator(**tokens, schedule=LogLinear(), bos_id=None, num_draws=2)
    batch = score([{"seed": 0, "target_ids": torch.empty(0, dtype=torch.int64)}])
    loss = UDLMLoss(**tokens)
    assert loss(model, batch).loss_sum.item() == 0
    found = loss.likelihood(model, batch)
    assert (found.nll.tolist(), found.num_tokens.tolist()) == ([0.0], [0])
    prompts = UDLMPromptCollator(bos_id=None, eos_id=None, default_length=0, pad_id=PAD)
    predict = UDLMPredictor(**tokens, schedule=LogLinear(), sampler="ancestral")
    written = predict(model, prompts([{"seed": 0}]), torch.tensor([0]))
    assert (written.lengths.tolist(), written.nfe.tolist()) == ([0], [0])


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> UDLMDiT:
        return UDLMDiT(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2, d_condition=8)

    def run(self, model: nn.Module) -> object:
        return model(torch.arange(12).reshape(2, 6), None, torch.tensor([0.1, 2.0]))
