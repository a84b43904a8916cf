"""Saving and loading the network."""

import torch
from torch import nn

from xlm.modules.testing import SavingSuite
from xlm_flexmdm import FlexMDM


class TestSaving(SavingSuite):
    def build_model(self, d_model: int) -> FlexMDM:
        return FlexMDM(vocab_size=12, d_model=d_model, num_layers=2, num_heads=2, d_condition=8, max_length=7)

    def run(self, model: nn.Module) -> object:
        cells = torch.tensor([0, 3, 7])
        ids, time = torch.arange(12).reshape(2, 6), torch.tensor([0.2, 0.9])
        return model(ids, time, 1 - time, token_positions=cells, slot_positions=cells)
