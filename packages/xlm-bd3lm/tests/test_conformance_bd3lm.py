"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType

import pytest
import torch
from torch import nn

from xlm.modules import Cosine, LogLinear, NoiseSchedule
from xlm.modules.samplers import RuleName, Sampler, compose
from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_bd3lm import (
    BD3LMBatch,
    BD3LMCollator,
    BD3LMDiT,
    BD3LMLikelihoodCollator,
    BD3LMLoss,
    BD3LMPredictor,
    BD3LMPromptBatch,
    BD3LMPromptCollator,
    BD3LMRotary,
)

PAD, CLS, MASK, EOS, BOS, SEP, UNK = range(7)


class _BD3LMConformance(ConformanceSuite[BD3LMBatch, BD3LMPromptBatch]):
    """Texts that end with EOS: length is modelled."""

    ordinary_ids = range(7, 12)
    pad_id = PAD
    max_length = 7
    loss_padding = MappingProxyType(
        {
            "input_ids": PAD,
            "target_ids": PAD,
            "cell_blocks": -1,
            "masked": False,
            "may_end": False,
            "may_pad": False,
            "clean_ids": PAD,
            "clean_blocks": -1,
        }
    )
    prompt_padding = MappingProxyType(
        {
            "input_ids": PAD,
            "attention_mask": False,
            "masked": False,
            "may_end": False,
            "prompt_ids": PAD,
            "prompt_mask": False,
        }
    )
    block_length = 3
    max_target_length: int | None = 7
    schedule: NoiseSchedule = LogLinear()
    sampler: Sampler | RuleName = compose("ancestral", num_steps=2)
    cache = True

    def build_model(self) -> nn.Module:
        return BD3LMRotary(vocab_size=12, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> BD3LMLoss:
        return BD3LMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=range(7))

    def build_predictor(self) -> BD3LMPredictor:
        return BD3LMPredictor(
            schedule=self.schedule,
            sampler=self.sampler,
            mask_id=MASK,
            pad_id=PAD,
            eos_id=EOS,
            suppressed_ids=range(7),
            block_length=self.block_length,
            cache=self.cache,
        )

    def build_loss_collator(self, kind: Kind) -> BD3LMCollator:
        return BD3LMCollator(
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            block_length=self.block_length,
            max_target_length=self.max_target_length,
        )

    def build_prompt_collator(self, kind: Kind) -> BD3LMPromptCollator:
        return BD3LMPromptCollator(
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            block_length=self.block_length,
            max_target_length=self.max_target_length,
            default_length=None if self.max_target_length is not None else 5,
        )

    def build_likelihood(self, kind: Kind) -> tuple[BD3LMLoss, BD3LMLikelihoodCollator]:
        collator = BD3LMLikelihoodCollator(
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            block_length=self.block_length,
            max_target_length=self.max_target_length,
            num_draws=3,
        )
        return self.build_loss(), collator


class TestRotary(_BD3LMConformance):
    """Ancestral sampling in blocks of three."""


class TestDiT(_BD3LMConformance):
    """First-hitting sampling with the network of the paper, times as noise, another schedule."""

    block_length = 4
    schedule = Cosine()
    sampler = compose("first_hitting")

    def build_model(self) -> nn.Module:
        return BD3LMDiT(vocab_size=12, d_model=16, num_layers=2, num_heads=2, d_condition=8)

    def build_loss_collator(self, kind: Kind) -> BD3LMCollator:
        return BD3LMCollator(
            mask_id=MASK,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            block_length=self.block_length,
            max_target_length=self.max_target_length,
            noise="time",
            schedule=self.schedule,
            clip=(0.3, 0.9),
        )


class TestWithoutCache(_BD3LMConformance):
    """Remasking inside the blocks; the past is evaluated anew."""

    block_length = 2
    sampler = compose("remdm_cap", num_steps=5, eta=0.3)
    cache = False


class TestKnownLength(_BD3LMConformance):
    """As many cells as the target has tokens, the most confident first."""

    max_target_length = None
    sampler = compose("confidence", rank="entropy", num_steps=2)

    def test_collators_refuse_too_long_targets(self) -> None:
        pytest.skip("a known length has no limit")


class TestOneCell(_BD3LMConformance):
    """Blocks of one cell: an autoregressive model."""

    block_length = 1


def test_rows_without_any_token_are_scored_and_generated() -> None:
    """No BOS, no EOS, an empty target: nothing to learn, nothing to pay, nothing to write."""
    model = BD3LMRotary(vocab_size=12, d_model=16, num_layers=1, num_heads=2)
    score = BD3LMLikelihoodCollator(
        bos_id=None, eos_id=None, num_draws=2, mask_id=MASK, pad_id=PAD, block_length=2
    )
    batch = score([{"seed": 0, "target_ids": torch.empty(0, dtype=torch.int64)}])
    loss = BD3LMLoss(eos_id=None, mask_id=MASK, pad_id=PAD)
    assert loss(model, batch).loss_sum.item() == 0
    found = loss.likelihood(model, batch)
    assert (found.nll.tolist(), found.num_tokens.tolist()) == ([0.0], [0])
    prompts = BD3LMPromptCollator(
        bos_id=None, eos_id=None, default_length=0, mask_id=MASK, pad_id=PAD, block_length=2
    )
    predict = BD3LMPredictor(
        schedule=LogLinear(),
        sampler="first_hitting",
        mask_id=MASK,
        pad_id=PAD,
        eos_id=None,
        block_length=2,
    )
    written = predict(model, prompts([{"seed": 0}]), torch.tensor([0]))
    assert (written.lengths.tolist(), written.nfe.tolist()) == ([0], [0])


class TestSavingRotary(SavingSuite):
    def build_model(self, d_model: int) -> BD3LMRotary:
        return BD3LMRotary(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)


class TestSavingDiT(SavingSuite):
    def build_model(self, d_model: int) -> BD3LMDiT:
        return BD3LMDiT(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2, d_condition=8)
