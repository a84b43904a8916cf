"""Saving and loading the network."""

from xlm.modules.testing import SavingSuite
from xlm_mlm import MLM


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> MLM:
        return MLM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)
