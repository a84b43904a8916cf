"""Saving and loading both networks."""

from xlm.modules.testing import SavingSuite
from xlm_mdlm import MDLMDiT, MDLMRotary


class TestSavingRotary(SavingSuite):
    def build_model(self, d_model: int) -> MDLMRotary:
        return MDLMRotary(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2)


class TestSavingDiT(SavingSuite):
    def build_model(self, d_model: int) -> MDLMDiT:
        return MDLMDiT(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2, d_condition=8)
