"""Muon and AdamW in one optimizer: the steps are those of the two apart, also after a checkpoint."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from xlm.core.optimizers import MuonWithAdamW
from xlm.core.training.lr_schedules import WarmupSchedule


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.blocks = nn.ModuleDict({"attention": nn.Linear(4, 4), "feed_forward": nn.Linear(4, 6)})
        self.head = nn.Linear(6, 7)

    def lose(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks["feed_forward"](self.blocks["attention"](self.embedding(ids)).tanh())
        return self.head(hidden.tanh()).logsumexp(-1).square().mean()


def _make(network: Network) -> MuonWithAdamW:
    return MuonWithAdamW(network.named_parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)


def _train(network: Network, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    schedules = [WarmupSchedule(name="cosine", warmup=2)(optimizer, num_steps=8) for optimizer in optimizers]
    for step in steps:
        network.zero_grad()
        network.lose(torch.arange(step, step + 5) % 7).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()


def test_each_parameter_gets_the_step_of_its_own_optimizer() -> None:
    network, apart = Network(), Network()
    names = ("blocks.attention.weight", "blocks.feed_forward.weight")
    matrices = [parameter for name, parameter in apart.named_parameters() if name in names]
    others = [parameter for name, parameter in apart.named_parameters() if name not in names]
    assert (len(matrices), len(others)) == (2, 5)
    muon = Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    _train(network, [_make(network)], range(6))
    _train(apart, [muon, AdamW(others, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)], range(6))
    for (name, ours), theirs in zip(network.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    network = Network()
    optimizer = _make(network)
    _train(network, [optimizer], range(3))
    resumed = copy.deepcopy(network)
    anew = _make(resumed)
    anew.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(network, [optimizer], range(3, 6))
    _train(resumed, [anew], range(3, 6))
    for ours, theirs in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_closure_gives_the_loss() -> None:
    network = Network()
    optimizer = _make(network)

    def closure() -> float:
        loss = network.lose(torch.arange(5))
        loss.backward()
        return float(loss.detach())

    before = network.head.weight.detach().clone()
    assert optimizer.step(closure) > 0
    assert not torch.equal(network.head.weight, before)


@pytest.mark.parametrize("matrices", ["nothing", "bias"])
def test_a_choice_without_matrices_is_refused(matrices: str) -> None:
    with pytest.raises(ValueError, match=r"fits no parameter.*embedding\.weight, blocks\.attention\.weight"):
        MuonWithAdamW(Network().named_parameters(), lr=0.01, matrices=matrices)


def test_a_choice_of_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="fits every parameter"):
        MuonWithAdamW([("head.weight", nn.Parameter(torch.ones(2, 2)))], lr=0.01, matrices="head")
