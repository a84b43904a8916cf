"""A network without layers, heads or units is refused by the name of its size."""

import pytest

from xlm.modules import DiT, RotaryTransformer

SIZES = {"vocab_size": 5, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 16}


@pytest.mark.parametrize("network", [RotaryTransformer, DiT])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -8])
def test_a_size_below_one_is_refused(
    network: type[RotaryTransformer] | type[DiT], name: str, size: int
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {size}"):
        network(**{**SIZES, name: size})  # pyright: ignore[reportArgumentType]  # the other arguments are no sizes
