from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """Inputs and outputs of the published implementation; see data/README.md."""
    return load_file(Path(__file__).parent / "data" / "ilm.safetensors")
