"""``compile=true``: the network goes through ``torch.compile`` and gives the same loss and gradients.

uv run nox -s slow
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor

from xlm.core.data import DataModule
from xlm.core.training.harness import Harness
from xlm.modules import read_tokens

from .running import composed

pytestmark = pytest.mark.slow  # a C++ compiler is at work


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, DataModule]:
    from xlm.core.training.assembly import assemble
    from xlm.core.training.run import resolve

    config = composed(
        "star_tiny_mdlm",
        "job_type=train",
        "job_name=x",
        "compile=true",
        f"datamodule.cache_dir={tmp_path_factory.mktemp('cache')}",
        "task.source.num_rows={train: 16, val: 16, test: 16}",
        "model.trunk.d_model=32",
        "model.trunk.num_layers=1",
        "model.trunk.num_heads=2",
    )
    harness, data = assemble(resolve(config))
    harness.eval()  # the draws of dropout differ once compiled
    return harness, data


def batch(data: DataModule) -> Any:
    return data.collate("train", "lm")(data.first_examples("train", "lm", 16)).batch


def test_a_network_that_does_not_compile_is_not_run_uncompiled(parts: tuple[Harness, DataModule]) -> None:
    harness, data = parts
    with (
        inductor.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(Exception, match="C\\+\\+"),
    ):
        harness.slots.loss(harness.network, batch(data))


# The compiler looks whether a tensor has .grad, and hides this warning from all but pytest's "error".
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_network_gives_the_same_loss(
    parts: tuple[Harness, DataModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, data = parts
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    results: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for network in (harness.model, harness.network):
        loss = harness.slots.loss(network, batch(data)).loss_sum
        results.append((loss, list(torch.autograd.grad(loss, list(harness.model.parameters())))))
    (plain, gradients), (compiled, compiled_gradients) = results
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-3, atol=1e-4)
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"


def test_a_readout_is_not_compiled() -> None:
    """A sampler's readout, compiled, corrupted the memory of udlm's generation."""
    compiling: list[bool] = []

    def readout(hidden: torch.Tensor, head: torch.nn.Module) -> torch.Tensor:
        compiling.append(torch.compiler.is_compiling())
        return head(hidden)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

        def forward(self, hidden: torch.Tensor) -> Any:
            return read_tokens(2 * hidden, self.head, readout)

    torch.compile(Network(), backend="eager")(torch.ones(3, 2))
    assert compiling == [False]
