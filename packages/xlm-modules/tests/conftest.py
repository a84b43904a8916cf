from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def load_vectors() -> Callable[[str], dict[str, Tensor]]:
    """Reads a file of reference vectors, see data/README.md."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(Path(__file__).parent / "data" / f"{name}.npz") as arrays:
            return {key: torch.tensor(arrays[key]) for key in arrays}

    return load
