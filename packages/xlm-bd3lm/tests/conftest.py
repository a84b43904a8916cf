from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """Inputs and outputs of the authors' code; see data/README.md."""
    return load_file(Path(__file__).parent / "data" / "bd3lm.safetensors")
