"""A small network, the collators that go with its ids, and reference vectors."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from xlm_arlm import ARLM, ARLMCollator, ARLMPromptCollator

from .plain_distribution import BOS, EOS, PAD, make_model


@pytest.fixture
def model() -> ARLM:
    return make_model()


@pytest.fixture
def collate() -> ARLMCollator:
    return ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=EOS)


@pytest.fixture
def collate_prompts() -> ARLMPromptCollator:
    return ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=6)


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """Inputs and outputs of another implementation; see data/README.md."""
    return load_file(Path(__file__).parent / "data" / "arlm.safetensors")
