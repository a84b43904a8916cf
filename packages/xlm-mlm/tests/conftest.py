import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:  # pyright: ignore[reportUnusedFunction]  # pytest calls it
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  # torch leaves it untyped
