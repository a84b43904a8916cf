"""Saving and loading the network."""

from xlm.modules.testing import SavingSuite
from xlm_arlm import ARLM


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> ARLM:
        return ARLM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)
