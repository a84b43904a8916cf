"""The network: what sees what, where the head is computed, precision, saving."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import DiT, RotaryTransformer, segment_mask
from xlm_arlm import ARLM

from .plain_distribution import make_model, watch_head


def test_tokens_see_what_the_reference_attention_matrix_says(reference: dict[str, Tensor]) -> None:
    """One block, so that a logit depends on an embedding if and only if the query sees the key, or is it."""
    model = make_model(num_layers=1)
    input_ids, mask = reference["xlm.input_ids"], reference["xlm.attention_mask"].bool()
    rows, length = input_ids.shape
    transformer = cast("RotaryTransformer", model.transformer)
    embedding = transformer.embedding(input_ids).detach().requires_grad_()

    def replace(_module: nn.Module, _inputs: tuple[Tensor], _output: Tensor) -> Tensor:
        return embedding

    handle = transformer.embedding.register_forward_hook(replace)
    logits = model(input_ids, mask)
    handle.remove()
    sees = torch.zeros(rows, length, length, dtype=torch.bool)
    for query in range(length):
        # Not the plain sum: of the logits it depends on the mean of the head's rows only.
        (gradient,) = torch.autograd.grad(logits[:, query].square().sum(), embedding, retain_graph=True)
        sees[:, query] = gradient.abs().amax(-1) > 0
    expected = reference["xlm.attention_matrix"].bool() | torch.eye(length, dtype=torch.bool)
    assert torch.equal(sees, expected & mask.unsqueeze(2))  # padding is not computed


def test_positions_are_those_of_the_reference(model: ARLM, reference: dict[str, Tensor]) -> None:
    input_ids, mask = reference["xlm.input_ids"], reference["xlm.attention_mask"].bool()
    explicit = model(input_ids, mask, reference["xlm.positions"])
    torch.testing.assert_close(model(input_ids, mask)[mask], explicit[mask])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: ARLM, side: str) -> None:
    ids = torch.tensor([[7, 8, 4, 9, 10]])
    padding = torch.zeros(1, 3, dtype=torch.int64)
    padded = torch.cat((padding, ids) if side == "left" else (ids, padding), dim=1)
    logits = model(padded, padded != 0)[padded != 0]
    torch.testing.assert_close(logits, model(ids)[0])


def test_packed_texts_do_not_see_each_other(model: ARLM) -> None:
    first, second = torch.tensor([[4, 7, 8, 3]]), torch.tensor([[4, 10, 9, 9, 3]])
    segments = torch.tensor([[0] * 4 + [1] * 5 + [-1]])
    packed = torch.cat((first, second, torch.tensor([[0]])), dim=1)
    logits = model(packed, segment_mask(segments))[0]
    torch.testing.assert_close(logits[:4], model(first)[0])
    torch.testing.assert_close(logits[4:9], model(second)[0])


def test_head_is_computed_at_the_positions_only(model: ARLM) -> None:
    ids = torch.tensor([[4, 7, 8, 3], [4, 9, 9, 10]])
    positions = torch.tensor([6, 1, 1])
    heads, handle = watch_head(model)
    logits = model(ids, positions=positions)
    handle.remove()
    assert heads == [3]
    torch.testing.assert_close(logits, model(ids).flatten(0, 1)[positions])


def test_a_readout_gets_the_cells_and_the_head(model: ARLM) -> None:
    ids, positions = torch.tensor([[4, 7, 8, 3], [4, 9, 9, 10]]), torch.tensor([1, 6])

    def both(hidden: Tensor, head: nn.Module) -> tuple[Tensor, nn.Module]:
        return hidden, head

    hidden, head = model(ids, positions=positions, readout=both)
    assert head is model.token_head
    torch.testing.assert_close(head(hidden), model(ids, positions=positions))


def test_a_saved_network_comes_back(model: ARLM, tmp_path: Path) -> None:
    model.float().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    restored: nn.Module = ARLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[4, 7, 8, 3]])
    assert torch.equal(restored(ids), model(ids))


def test_a_trunk_has_to_be_causal_and_to_take_a_cache() -> None:
    sizes: dict[str, Any] = {"vocab_size": 9, "d_model": 8, "num_layers": 1, "num_heads": 2}
    ARLM(vocab_size=9, trunk=RotaryTransformer(**sizes, causal=True))
    trunks: list[Any] = [RotaryTransformer(**sizes), DiT(**sizes)]
    for trunk in trunks:
        with pytest.raises(ValueError, match=r"^model\.trunk \(.*\) is not causal"):
            ARLM(vocab_size=9, trunk=trunk)
