"""The network: where logits are computed, padding, saving."""

from pathlib import Path

import pytest
import torch

from xlm.modules import segment_mask
from xlm_mlm import MLM


def small(*, vocab_size: int = 11) -> MLM:
    return MLM(vocab_size=vocab_size, d_model=16, num_layers=2, num_heads=2, d_ff=24).double().eval()


def test_positions_select_cells_of_all_logits() -> None:
    model = small()
    input_ids = torch.randint(11, (3, 5))
    every = model(input_ids)
    assert every.shape == (3, 5, 11)
    positions = torch.tensor([14, 0, 7, 7])
    torch.testing.assert_close(model(input_ids, positions=positions), every.view(15, 11)[positions])
    assert model(input_ids, positions=positions[:0]).shape == (0, 11)


def test_every_cell_sees_both_sides() -> None:
    model = small()
    input_ids = torch.randint(2, 11, (1, 5))
    before = model(input_ids)
    for column in (0, 4):
        changed = input_ids.clone()
        changed[0, column] = 1
        assert ((model(changed) - before).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(side: str) -> None:
    model = small()
    input_ids = torch.randint(11, (2, 4))
    padding = torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.cat((torch.zeros(2, 3), torch.ones(2, 4)), 1).bool()
    padded = torch.cat((padding, input_ids) if side == "left" else (input_ids, padding), 1)
    mask = mask if side == "left" else mask.flip(1)
    logits = model(padded, mask)[mask].view(2, 4, 11)
    torch.testing.assert_close(logits, model(input_ids), rtol=1e-12, atol=1e-12)


def test_texts_packed_into_one_row_do_not_see_each_other() -> None:
    model = small()
    input_ids = torch.randint(11, (1, 7))
    packed = model(input_ids, segment_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))
    for part in (slice(0, 3), slice(3, 7)):
        torch.testing.assert_close(packed[:, part], model(input_ids[:, part]), rtol=1e-12, atol=1e-12)


def test_a_saved_network_comes_back(tmp_path: Path) -> None:
    model = small().float()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "config.json"}
    loaded = MLM.from_pretrained(tmp_path)
    input_ids = torch.randint(11, (2, 6))
    assert torch.equal(loaded.eval()(input_ids), model(input_ids))


def test_initial_logits_are_small() -> None:
    logits = MLM(vocab_size=50, d_model=64, num_layers=4, num_heads=4)(torch.randint(50, (4, 10)))
    assert 0.05 < float(logits.detach().std()) < 0.5
