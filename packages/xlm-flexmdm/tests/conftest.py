from pathlib import Path

import pytest
from safetensors.torch import load
from torch import Tensor


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """Inputs and outputs of the published implementation; see data/README.md."""
    return load((Path(__file__).parent / "data" / "flexmdm.safetensors").read_bytes())
