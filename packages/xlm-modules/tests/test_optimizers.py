"""Muon and AdamW in one optimizer: the steps are those of torch's two apart, also after a checkpoint."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from xlm.modules import optimizers
from xlm.modules.optimizers import FusedAdamW, MuonWithAdamW, newton_schulz_dtype, orthogonalise

with_torchs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")


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
    schedules = [LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in optimizers]
    for step in steps:
        network.zero_grad()
        network.lose(torch.arange(step, step + 5) % 7).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()


@with_torchs_muon
def test_each_parameter_gets_the_step_of_its_own_optimizer() -> None:
    network, apart = Network(), Network()
    names = ("blocks.attention.weight", "blocks.feed_forward.weight")
    matrices = [parameter for name, parameter in apart.named_parameters() if name in names]
    others = [parameter for name, parameter in apart.named_parameters() if name not in names]
    assert (len(matrices), len(others)) == (2, 5)
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    _train(network, [_make(network)], range(6))
    _train(apart, [muon, AdamW(others, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)], range(6))
    start = Network()
    for (name, ours), theirs, first in zip(
        network.named_parameters(), apart.parameters(), start.parameters(), strict=True
    ):
        # torch's Muon rounds to bfloat16 (8 bits); through the gradients that reaches the others as well.
        assert (ours - theirs).norm() < 0.1 * (theirs - first).norm(), name


def _newton_schulz_of_singular_values(matrix: Tensor) -> Tensor:
    """The five steps in float64, on the singular values alone."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


SHAPES = [(6, 6), (9, 4), (4, 9), (1, 5), (5, 1), (4, 9), (64, 192)]


def _matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_singular_values_go_to_one_and_singular_vectors_stay() -> None:
    for matrix, found in zip(_matrices(), orthogonalise(_matrices()), strict=True):
        expected = _newton_schulz_of_singular_values(matrix)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        polar = left @ right
        reached = torch.linalg.svdvals(found)[values > 0.1 * values.max()]
        assert 0.6 < reached.min() <= reached.max() < 1.3
        # The polar factor U of G makes UᵀG symmetric, and so does U's substitute here.
        aligned = polar.mT @ found
        torch.testing.assert_close(aligned, aligned.mT, rtol=0, atol=2e-5)


@with_torchs_muon
def test_a_step_is_that_of_torchs_muon_to_the_error_of_bfloat16() -> None:
    ours = [nn.Parameter(matrix) for matrix in _matrices()]
    theirs = [nn.Parameter(matrix) for matrix in _matrices()]
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = mine.detach().flip(0).sin()
        other.grad = mine.grad.clone()
    rest = ("bias", nn.Parameter(torch.zeros(2)))
    names = [(f"blocks.{place}", parameter) for place, parameter in enumerate(ours)]
    MuonWithAdamW([*names, rest], lr=0.1, weight_decay=0.1).step()
    torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    for start, mine, other in zip(_matrices(), ours, theirs, strict=True):
        assert (mine - other).norm() < 0.03 * (other - start).norm()
        assert not torch.equal(mine, start)


def test_a_matrix_does_not_see_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [*_matrices(), torch.zeros(4, 9)]
    together = orthogonalise(matrices)
    alone = [orthogonalise([matrix])[0] for matrix in matrices]
    monkeypatch.setattr(optimizers, "MOST_ELEMENTS", 72)  # two matrices of 4 x 9
    for one, two, three in zip(together, alone, orthogonalise(matrices), strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)
    assert together[-1].count_nonzero() == 0


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        ("cpu", None, torch.float32),
        ("mps", None, torch.float32),
        ("cuda", (7, 5), torch.float32),
        ("cuda", (8, 0), torch.bfloat16),
        ("cuda", (12, 0), torch.bfloat16),
    ],
)
def test_bfloat16_is_for_devices_that_multiply_it(
    device: str, capability: tuple[int, int] | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reported(_: torch.device) -> tuple[int, int] | None:
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", reported)
    assert newton_schulz_dtype(torch.device(device)) == dtype


def test_float16_and_bfloat16_weights_are_trained() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        network = Network().to(dtype)
        before = copy.deepcopy(network)
        _train(network, [_make(network)], range(2))
        for ours, first in zip(network.parameters(), before.parameters(), strict=True):
            assert ours.dtype == dtype
            assert ours.isfinite().all()
            assert not torch.equal(ours, first)


def _make_fused(network: Network) -> FusedAdamW:
    return FusedAdamW(network.named_parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)


def test_the_fused_step_is_adamws() -> None:
    network, plain = Network(), Network()
    optimizer = _make_fused(network)
    assert optimizer.param_groups[0]["fused"] is True
    _train(network, [optimizer], range(6))
    slow = AdamW(plain.named_parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, foreach=False)
    _train(plain, [slow], range(6))
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_device_without_the_kernel_gets_torchs_choice() -> None:
    optimizer = FusedAdamW([("bias", nn.Parameter(torch.empty(2, device="meta")))], lr=0.01)
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize("make", [_make, _make_fused])
def test_a_state_that_another_implementation_saved_is_taken(
    make: Callable[[Network], torch.optim.Optimizer],
) -> None:
    network = Network()
    optimizer = make(network)
    _train(network, [optimizer], range(2))
    saved = optimizer.state_dict()
    saved["param_groups"][-1]["fused"] = None  # as before AdamW was fused
    resumed = copy.deepcopy(network)
    anew = make(resumed)
    anew.load_state_dict(copy.deepcopy(saved))
    assert anew.param_groups[-1]["fused"] is True
    _train(network, [optimizer], range(2, 4))
    _train(resumed, [anew], range(2, 4))
    for ours, theirs in zip(network.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scaled_gradients_are_unscaled_before_the_fused_step_and_may_be_clipped() -> None:
    network, plain = Network(), Network()
    optimizer, unscaled = _make_fused(network), _make_fused(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        for one, loss_scale in ((network, scaler.get_scale()), (plain, 1.0)):
            one.zero_grad()
            (one.lose(torch.arange(step, step + 5) % 7) * loss_scale).backward()
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        for one in (network, plain):
            nn.utils.clip_grad_norm_(one.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        unscaled.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", [_make, _make_fused])
def test_a_saved_state_goes_on_as_if_nothing_had_been(
    make: Callable[[Network], torch.optim.Optimizer],
) -> None:
    network = Network()
    optimizer = make(network)
    _train(network, [optimizer], range(3))
    resumed = copy.deepcopy(network)
    anew = make(resumed)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    anew.load_state_dict(torch.load(file, weights_only=True))
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
