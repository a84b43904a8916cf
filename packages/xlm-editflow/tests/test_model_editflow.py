"""The network: its cells, its positions, its times, and saving it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.modules import PromptCache
from xlm_editflow import EditFlow, EditFlowOutput

TIME = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


def network() -> EditFlow:
    model = EditFlow(vocab_size=12, d_model=16, num_layers=2, num_heads=2).double().eval()
    with torch.no_grad():
        model.get_parameter("time_modulation.modulation.weight").normal_()
    return model


def everywhere(model: EditFlow, ids: torch.Tensor, **named: Any) -> EditFlowOutput:
    cells = torch.arange(ids.numel())
    return model(ids, insert_at=cells, substitute_at=cells, **named)


def test_cells_are_insertions_and_then_substitutions() -> None:
    model, ids = network(), torch.randint(7, 12, (3, 5))
    whole = everywhere(model, ids, time=TIME)
    assert whole.token_logits.shape == (30, 12)
    assert whole.operation_logits.shape == (3, 5, 3)
    insert_at, substitute_at = torch.tensor([0, 7, 14, 7]), torch.tensor([3])
    some = model(ids, insert_at=insert_at, substitute_at=substitute_at, time=TIME)
    expected = whole.token_logits[[0, 7, 14, 7, 15 + 3]]
    torch.testing.assert_close(some.token_logits, expected)
    assert not torch.allclose(whole.token_logits[3], whole.token_logits[15 + 3])


def test_columns_may_stand_in_any_order() -> None:
    model, ids = network(), torch.randint(7, 12, (2, 6))
    order = torch.tensor([0, 1, 4, 2, 5, 3])
    shuffled = everywhere(model, ids[:, order], position_ids=order.expand(2, -1), time=TIME[:2])
    expected = everywhere(model, ids, time=TIME[:2])
    torch.testing.assert_close(shuffled.operation_logits, expected.operation_logits[:, order])


def test_a_sampler_may_read_the_operations_at_many_times_before_it_chooses_one() -> None:
    model, ids = network(), torch.randint(7, 12, (2, 5))
    found: list[torch.Tensor] = []

    def choose(operations_at: Any) -> torch.Tensor:
        found.extend(operations_at(torch.full((2,), u, dtype=torch.float64)) for u in (0.9, 0.1))
        return TIME[1:]

    chosen = everywhere(model, ids, time=choose)
    for logits, u in zip(found, (0.9, 0.1), strict=True):
        expected = everywhere(model, ids, time=torch.full((2,), u, dtype=torch.float64))
        assert torch.equal(logits, expected.operation_logits)
    assert torch.equal(chosen.token_logits, everywhere(model, ids, time=TIME[1:]).token_logits)


def test_the_time_starts_without_effect() -> None:
    model = EditFlow(vocab_size=12, d_model=16, num_layers=1, num_heads=2).double().eval()
    ids = torch.randint(7, 12, (2, 5))
    early, late = (
        everywhere(model, ids, time=torch.full((2,), u, dtype=torch.float64)) for u in (0.9, 5e-324)
    )
    assert torch.equal(early.token_logits, late.token_logits)
    assert bool(late.operation_logits.isfinite().all())


def test_a_prompt_that_is_read_once_gives_the_logits_of_whole_rows() -> None:
    """Prompts of three and one tokens, targets of three."""
    options = {"vocab_size": 12, "d_model": 16, "num_layers": 2, "num_heads": 2, "prompt_sees_target": False}
    model = EditFlow(**options).double().eval()  # pyright: ignore[reportArgumentType]  # sizes and a flag
    ids, start = torch.randint(7, 12, (2, 6)), torch.tensor([3, 1]).unsqueeze(1)
    column = torch.arange(6).expand(2, -1)
    prompt, real = column < start, column < start + 3
    whole = everywhere(model, ids, attention_mask=real, time=TIME[:2], prompt=prompt)
    cache, nothing = PromptCache(), torch.arange(0)
    model(ids[:, :3], prompt[:, :3], time=TIME[:2], insert_at=nothing, substitute_at=nothing, cache=cache)
    places = start + torch.arange(3)
    found = everywhere(
        model, ids.gather(1, places), position_ids=places, attention_mask=None, time=TIME[:2], cache=cache
    )
    expected = whole.operation_logits.gather(1, places.unsqueeze(2).expand(-1, -1, 3))
    torch.testing.assert_close(found.operation_logits, expected)
    cells = (torch.arange(2).unsqueeze(1) * 6 + places).flatten()
    torch.testing.assert_close(found.token_logits, whole.token_logits[torch.cat((cells, cells + 12))])


@pytest.mark.parametrize("options", [{}, {"d_condition": 6, "rotary_dim": 4}])
def test_saved_network_gives_the_same_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"vocab_size": 12, "d_model": 16, "num_layers": 1, "num_heads": 2, **options}
    model = EditFlow(**arguments).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in arguments} == arguments
    card = (tmp_path / "README.md").read_text()
    assert "library_name: xlm-editflow" in card
    assert "license: mit" in card

    loaded = EditFlow.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 12, (2, 7))
    expected, found = everywhere(model, ids, time=TIME[:2]), everywhere(loaded, ids, time=TIME[:2])
    assert torch.equal(found.token_logits, expected.token_logits)
    assert torch.equal(found.operation_logits, expected.operation_logits)
