from types import MappingProxyType

from xlm.modules.testing import ConformanceSuite, Kind
from xlm_skeleton import (
    Skeleton,
    SkeletonBatch,
    SkeletonCollator,
    SkeletonLoss,
    SkeletonPredictor,
    SkeletonPromptBatch,
    SkeletonPromptCollator,
)

PAD, MASK = range(2)


class TestConformance(ConformanceSuite[SkeletonBatch, SkeletonPromptBatch]):
    ordinary_ids = range(2, 7)
    pad_id = PAD
    max_length = 7
    kinds = ("language_modelling", "prefix", "infilling")
    refused_by_predictor = ("prompt_only",)
    loss_padding = MappingProxyType({"input_ids": PAD, "attention_mask": False, "target_ids": PAD})
    prompt_padding = MappingProxyType({"input_ids": PAD, "attention_mask": False, "masked": False})

    def build_model(self) -> Skeleton:
        return Skeleton(vocab_size=7, d_model=16, num_layers=2, num_heads=2, suppressed_ids=[PAD, MASK])

    def build_loss(self) -> SkeletonLoss:
        return SkeletonLoss()

    def build_predictor(self) -> SkeletonPredictor:
        return SkeletonPredictor(pad_id=PAD)

    def build_loss_collator(self, kind: Kind) -> SkeletonCollator:
        return SkeletonCollator(pad_id=PAD, mask_id=MASK, max_length=self.max_length)

    def build_prompt_collator(self, kind: Kind) -> SkeletonPromptCollator:
        return SkeletonPromptCollator(pad_id=PAD, mask_id=MASK, max_length=self.max_length)

    def build_likelihood(self, kind: Kind) -> tuple[SkeletonLoss, SkeletonCollator]:
        return self.build_loss(), self.build_loss_collator(kind)
