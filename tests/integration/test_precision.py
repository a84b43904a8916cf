"""Every family in less than float32: the loss stays that of the same weights, and generation is in order."""

from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.core.training.precision import HalfWeights

from .running import EXPERIMENTS, composed

SMALL = ("model.trunk.d_model=32", "model.trunk.num_layers=2", "model.trunk.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 16, val: 16, test: 16}"
TINY = [name for name in EXPERIMENTS if name.startswith("star_tiny_")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def parts(experiment: str, cache: Path) -> tuple[Any, Any, Any]:
    """The slots, a batch that trains and one that generates."""
    from xlm.core.training.assembly import assemble
    from xlm.core.training.run import resolve

    config = composed(
        experiment, "job_type=train", "job_name=x", f"datamodule.cache_dir={cache}", FEW_ROWS, *SMALL
    )
    torch.manual_seed(0)
    harness, data = assemble(resolve(config))
    train = data.collate("train", "lm")(data.first_examples("train", "lm", 16))
    generation = data.collate("test", "prediction")(data.first_examples("test", "prediction", 16))
    return harness.slots, train, generation


@pytest.mark.parametrize("experiment", TINY)
def test_bfloat16_changes_the_loss_by_rounding_only(experiment: str, cache: Path) -> None:
    slots, train, generation = parts(experiment, cache)
    model = slots.model.eval()
    for parameter in model.parameters():  # the same weights in both precisions
        parameter.data = parameter.data.bfloat16().float()
    with torch.no_grad():
        exact = slots.loss(model, train.batch)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = slots.loss(model, train.batch)
        HalfWeights("bf16-true").convert_module(model)
        half = slots.loss(model, train.batch)
        prediction = slots.predictor(model, generation.batch, generation.seeds)
    for output in (mixed, half):
        assert output.loss_sum.dtype in (torch.float32, torch.float64)
        assert torch.equal(output.loss_count, exact.loss_count)
        torch.testing.assert_close(output.loss_sum.double(), exact.loss_sum.double(), rtol=0.01, atol=0)
    assert prediction.lengths.shape == generation.seeds.shape


@pytest.mark.parametrize("experiment", TINY)
def test_a_network_that_answers_in_bfloat16_is_sampled_in_float64(experiment: str, cache: Path) -> None:
    """Widening its logits before the predictor sees them must change nothing."""
    slots, _, generation = parts(experiment, cache)
    model = HalfWeights("bf16-true").convert_module(slots.model.eval())

    def network(*arguments: Any, **named: Any) -> Any:
        """Takes no readout, so that the predictor sees the logits."""
        return model(*arguments, **named)

    with torch.no_grad():
        narrow = slots.predictor(network, generation.batch, generation.seeds)
        handle = model.register_forward_hook(lambda module, inputs, output: _widened(output))
        wide = slots.predictor(network, generation.batch, generation.seeds)
        handle.remove()
    assert torch.equal(narrow.lengths, wide.lengths)
    assert torch.equal(narrow.ids, wide.ids)


def _widened(output: Any) -> Any:
    """The same output with its floating tensors in float64, in any container."""
    if isinstance(output, torch.Tensor):
        return output.double() if output.is_floating_point() else output
    if isinstance(output, tuple):
        values = [_widened(value) for value in output]
        return type(output)(*values) if hasattr(output, "_fields") else tuple(values)
    if output is None:
        return None
    for name, value in vars(output).items():
        object.__setattr__(output, name, _widened(value))
    return output
