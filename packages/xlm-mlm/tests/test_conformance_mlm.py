"""What every family has to show, and saving and loading its network."""

from types import MappingProxyType

import torch

from xlm.modules.samplers import compose
from xlm.modules.testing import ConformanceSuite, Kind, SavingSuite
from xlm_mlm import (
    MLM,
    MLMBatch,
    MLMCollator,
    MLMLikelihoodCollator,
    MLMLoss,
    MLMPredictor,
    MLMPromptBatch,
    MLMPromptCollator,
)

PAD, CLS, MASK, EOS, BOS, SEP, UNK = range(7)


class _MLMConformance(ConformanceSuite[MLMBatch, MLMPromptBatch]):
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

    def build_model(self) -> MLM:
        return MLM(vocab_size=12, d_model=16, num_layers=2, num_heads=2)

    def build_loss(self) -> MLMLoss:
        return MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=range(7))

    def build_predictor(self) -> MLMPredictor:
        return MLMPredictor(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=range(7))

    def build_loss_collator(self, kind: Kind) -> MLMCollator:
        return MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, target_length=self.target_length)

    def build_prompt_collator(self, kind: Kind) -> MLMPromptCollator:
        return MLMPromptCollator(
            pad_id=PAD,
            mask_id=MASK,
            bos_id=BOS,
            eos_id=EOS,
            target_length=self.target_length,
            default_length=self.default_length,
        )

    def build_likelihood(self, kind: Kind) -> tuple[MLMLoss, MLMLikelihoodCollator]:
        collator = MLMLikelihoodCollator(
            pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, target_length=self.target_length, num_draws=3
        )
        return self.build_loss(), collator


class TestFixedWidth(_MLMConformance):
    """One cell per step in random order."""


class TestFixedWidthByConfidence(_MLMConformance):
    """The most confident cells in few steps, and a loss by rows."""

    def build_loss(self) -> MLMLoss:
        return MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=range(7), normalise="rows")

    def build_predictor(self) -> MLMPredictor:
        return MLMPredictor(
            mask_id=MASK,
            pad_id=PAD,
            eos_id=EOS,
            suppressed_ids=range(7),
            sampler=compose("confidence", rank="margin", num_steps=3, schedule="cosine"),
            temperature=0.5,
            top_p=0.9,
        )


class TestFixedWidthByUncertainty(_MLMConformance):
    """As many cells per step as the network is sure about."""

    def build_predictor(self) -> MLMPredictor:
        return MLMPredictor(
            mask_id=MASK,
            pad_id=PAD,
            eos_id=EOS,
            suppressed_ids=range(7),
            sampler=compose("entropy_bound", gamma=3.0),
        )


class TestKnownLength(_MLMConformance):
    """As many cells as the target has tokens, for any length."""

    target_length = None
    default_length = 5

    def test_collators_refuse_too_long_targets(self) -> None:
        """Here there is no limit to refuse them by."""
        target_ids = torch.full((100,), 7)
        for collate in (self.build_loss_collator("prefix"), self.build_prompt_collator("prefix")):
            assert collate([{"seed": 0, "target_ids": target_ids}])["input_ids"].shape == (1, 101)


def test_rows_without_any_token_are_scored_and_generated() -> None:
    """No BOS, no EOS, an empty target: nothing to learn, nothing to pay, nothing to write."""
    model = MLM(vocab_size=12, d_model=16, num_layers=1, num_heads=2)
    score = MLMLikelihoodCollator(bos_id=None, eos_id=None, num_draws=2, mask_id=MASK, pad_id=PAD)
    batch = score([{"seed": 0, "target_ids": torch.empty(0, dtype=torch.int64)}])
    loss = MLMLoss(eos_id=None, mask_id=MASK, pad_id=PAD)
    assert loss(model, batch).loss_sum.item() == 0
    found = loss.likelihood(model, batch)
    assert (found.nll.tolist(), found.num_tokens.tolist()) == ([0.0], [0])
    prompts = MLMPromptCollator(bos_id=None, eos_id=None, default_length=0, mask_id=MASK, pad_id=PAD)
    predict = MLMPredictor(mask_id=MASK, pad_id=PAD, eos_id=None)
    written = predict(model, prompts([{"seed": 0}]), torch.tensor([0]))
    assert (written.lengths.tolist(), written.nfe.tolist()) == ([0], [0])


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> MLM:
        return MLM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)
