"""Decoding with the cache against recomputation of the whole rows, in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xlm.modules import (
    BlockCache,
    Columns,
    DiT,
    KeyValueCache,
    PromptCache,
    RotaryTransformer,
    prompt_mask,
    segment_mask,
)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def network(*, causal: bool = True) -> RotaryTransformer:
    model = RotaryTransformer(vocab_size=11, d_model=16, num_layers=2, num_heads=2, causal=causal)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double().eval()


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(0))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def assert_rows_are_those_alone(model: RotaryTransformer, hidden: Tensor, ids: Tensor, real: Tensor) -> None:
    """Hidden states at the real tokens are those of each row without its padding."""
    for row in range(len(ids)):
        assert_same(hidden[row][real[row]], model(ids[row][real[row]].unsqueeze(0))[0])


@pytest.mark.parametrize("parts", [[9], [4, 5], [1] * 9, [3, 1, 1, 4], [5, 2, 2]])
def test_calls_in_parts_equal_one_call(parts: list[int]):
    model, ids, cache = network(), random_ids(3, 9), KeyValueCache()
    hidden = torch.cat([model(part, cache=cache) for part in ids.split(parts, dim=1)], dim=1)
    assert cache.length == 9
    assert_same(hidden, model(ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_of_different_length(side: str):
    """The padding of the prompts stays hidden while tokens are added one by one."""
    model, ids, cache = network(), random_ids(4, 11), KeyValueCache()
    lengths = torch.tensor([[6], [1], [4], [3]])
    columns = torch.arange(6)
    prompt = columns >= 6 - lengths if side == "left" else columns < lengths
    real = torch.cat((prompt, torch.ones(4, 5, dtype=torch.bool)), dim=1)
    parts = [model(ids[:, :6], prompt, cache=cache)]
    parts += [model(ids[:, i : i + 1], cache=cache) for i in range(6, 11)]
    assert_rows_are_those_alone(model, torch.cat(parts, dim=1), ids, real)


def test_padding_may_come_in_any_call():
    """A row that waits gets padding; the first call without a mask counts as real."""
    model, ids, cache = network(), random_ids(3, 8), KeyValueCache()
    real = torch.ones(3, 8, dtype=torch.bool)
    real[0, 4:6], real[2, 5:7] = False, False
    parts = [
        model(ids[:, :3], cache=cache),
        model(ids[:, 3:5], real[:, 3:5], cache=cache),
        model(ids[:, 5:6], real[:, 5:6], cache=cache),
        model(ids[:, 6:], real[:, 6:], cache=cache),
    ]
    assert_rows_are_those_alone(model, torch.cat(parts, dim=1), ids, real)


@pytest.mark.parametrize("padded", [False, True])
def test_rows_leave_and_change_places(padded: bool):
    model, ids, cache = network(), random_ids(5, 10), KeyValueCache()
    real = torch.ones(5, 10, dtype=torch.bool)
    if padded:
        real[:, :4] = torch.arange(4) >= torch.tensor([[0], [3], [1], [0], [2]])
    model(ids[:, :4], real[:, :4] if padded else None, cache=cache)
    rows = torch.arange(5)
    selections = {
        5: torch.tensor([4, 1, 2, 0]),
        7: torch.tensor([True, False, True, True]),
        8: torch.tensor([2]),
    }
    for i in range(4, 10):
        if i in selections:
            cache.select(selections[i])
            rows = rows[selections[i]]
        hidden = model(ids[rows, i : i + 1], cache=cache)
        for hidden_row, row in zip(hidden, rows.tolist(), strict=True):
            alone = ids[row, : i + 1][real[row, : i + 1]]
            assert_same(hidden_row[0], model(alone.unsqueeze(0))[0, -1])
    assert rows.tolist() == [0]


def test_beams_are_copies():
    """Two continuations of one row do not see each other's tokens."""
    model, ids, cache = network(), random_ids(2, 4), KeyValueCache()
    model(ids, cache=cache)
    cache.select(torch.tensor([1, 1, 0]))
    continuations = torch.tensor([[3, 5], [7, 1], [2, 9]])
    hidden = torch.cat([model(continuations[:, i : i + 1], cache=cache) for i in range(2)], dim=1)
    assert_same(hidden, model(torch.cat((ids[[1, 1, 0]], continuations), dim=1))[:, 4:])


def test_all_rows_may_leave():
    model, cache = network(), KeyValueCache()
    model(random_ids(2, 3), cache=cache)
    cache.select(torch.tensor([False, False]))
    assert model(torch.zeros(0, 1, dtype=torch.int64), cache=cache).shape == (0, 1, 16)


def test_selecting_from_an_empty_cache_does_nothing():
    model, ids, cache = network(), random_ids(2, 3), KeyValueCache()
    cache.select(torch.tensor([0]))
    assert_same(model(ids, cache=cache), model(ids))


def test_given_positions_are_those_of_the_new_tokens():
    model, ids, cache = network(), random_ids(2, 6), KeyValueCache()
    positions = torch.tensor([[0, 2, 3, 7, 8, 40], [5, 6, 7, 8, 9, 11]])
    parts = [
        model(ids[:, columns], None, positions[:, columns], cache=cache)
        for columns in (slice(0, 3), slice(3, 4), slice(4, 6))
    ]
    assert_same(torch.cat(parts, dim=1), model(ids, None, positions))


def test_results_of_earlier_calls_do_not_change_as_the_buffers_grow():
    """Also the keys that attention has read: the buffers are written behind their ends only."""
    model, ids, cache = network(), random_ids(1, 40), KeyValueCache()
    model(ids[:, :3], cache=cache)
    before = cache.layer(0).append(torch.ones(1, 2, 1, 8).double(), torch.ones(1, 2, 1, 8).double())
    copies = [tensor.clone() for tensor in before]
    for _ in range(20):
        cache.layer(0).append(torch.zeros(1, 2, 1, 8).double(), torch.zeros(1, 2, 1, 8).double())
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(before, copies, strict=True))


def test_decoding_copies_each_key_a_bounded_number_of_times():
    """The buffers of 500 single tokens are allocated ten times, not 500 times."""
    cache = KeyValueCache()
    addresses: set[int] = set()
    for _ in range(500):
        keys, _ = cache.layer(0).append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        addresses.add(keys.shape[2] if not addresses else keys.untyped_storage().nbytes())
    assert len(addresses) <= 11


@pytest.mark.parametrize(
    ("padded", "mask_shapes"), [(False, [None, None]), (True, [(2, 1, 4, 4), (2, 1, 1, 5)])]
)
def test_the_kernel_gets_a_mask_only_when_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, padded: bool, mask_shapes: list[tuple[int, ...] | None]
):
    calls: list[tuple[tuple[int, ...] | None, bool]] = []

    def attention(
        query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        calls.append((None if attn_mask is None else tuple(attn_mask.shape), is_causal))
        return query

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model, ids, cache = network(), random_ids(2, 5), KeyValueCache()
    model(ids[:, :4], torch.ones(2, 4, dtype=torch.bool) if padded else None, cache=cache)
    model(ids[:, 4:], cache=cache)
    assert calls == [(mask_shapes[0], not padded)] * 2 + [(mask_shapes[1], False)] * 2


def test_bfloat16_autocast_works_with_a_cache():
    model, ids, cache = network().float(), random_ids(2, 6), KeyValueCache()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [model(part, cache=cache) for part in ids.split([3, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0, atol=0.1)


def test_uses_that_cannot_be_right_are_refused():
    ids = random_ids(2, 3)
    for causal, wrong in ((False, KeyValueCache()), (True, PromptCache())):
        with pytest.raises(ValueError, match=r"a cache needs a causal network.*bidirectional.*PromptCache"):
            network(causal=causal)(ids, cache=wrong)
    with pytest.raises(ValueError, match="of shape \\(batch, length\\)"):
        network()(ids, segment_mask(torch.zeros_like(ids)), cache=KeyValueCache())
    model, cache = network(), KeyValueCache()
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="holds 2 rows and the call has 1"):
        model(ids[:1], cache=cache)


@pytest.mark.parametrize(
    "prompt",
    [
        [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]],
        # Of 4, 1 and 0 tokens, once behind a token that sees everything.
        [[1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
    ],
)
def test_prompts_read_once_give_the_states_of_one_call_with_their_mask(prompt: list[list[int]]):
    """Also when the targets change between calls, and rows leave."""
    model, is_prompt, cache = network(causal=False), torch.tensor(prompt).bool(), PromptCache()
    real = torch.arange(8) < torch.tensor([[8], [6], [7]])
    given, rest = Columns.of(is_prompt), Columns.of(real & ~is_prompt)
    ids = random_ids(3, 8)
    model(given.take(ids), given.exists, given.source, cache=cache)
    for kept in ([0, 1, 2], [0, 1, 2], [0, 2], [1], [1, 2], [0, 0, 1], [2, 0, 1, 1]):
        rows = torch.tensor(kept)
        ids = torch.where(is_prompt, ids, (ids * 7 + 3) % 11)
        expected = model(ids, prompt_mask(is_prompt, real))
        hidden = model(rest.take(ids)[rows], rest.exists[rows], rest.source[rows], cache=cache.of_rows(rows))
        for index, row in enumerate(kept):
            size = int(rest.exists[row].sum())
            assert_same(hidden[index, :size], expected[row, rest.source[row, :size]])
    with pytest.raises(ValueError, match="holds 3 rows and the call has 1"):
        model(ids[:1], cache=cache)


@pytest.mark.parametrize("kind", ["rotary", "dit"])
def test_blocks_in_a_cache_give_the_states_of_one_call_with_their_mask(kind: str):
    """Padded prompts, then blocks of 2 and 3 tokens; a peek leaves nothing behind; rows come in any order."""
    model: RotaryTransformer | DiT = network(causal=False)
    if kind == "dit":
        model = DiT(vocab_size=11, d_model=16, num_layers=2, num_heads=2)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
        model = model.double().eval()
    ids, number = random_ids(3, 8), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    real = torch.ones(3, 8, dtype=torch.bool)
    real[1, 1:3], real[2, 2] = False, False
    mask = (number.unsqueeze(1) >= number) & real.unsqueeze(1)
    place = (real.cumsum(1) - 1).clamp(min=0)
    expected, cache, rows = model(ids, mask, place), BlockCache(), torch.arange(3)
    parts = [model(ids[:, :3], real[:, :3], cache=cache)]
    for columns in (slice(3, 5), slice(5, 8)):
        noisy = (ids[:, columns] + 1) % 11
        first = model(noisy, cache=cache.peek())
        assert_same(model(noisy[[2, 0]], cache=cache.of_rows(torch.tensor([2, 0])).peek()), first[[2, 0]])
        before = cache.of_rows(rows)
        parts.append(model(ids[:, columns], cache=cache))
        assert before.length < cache.length, "what shares its tables stays as it is"
        assert_same(model(noisy, cache=before.peek()), first)
    for row in range(3):
        assert_same(torch.cat(parts, dim=1)[row][real[row]], expected[row][real[row]])
    # The prompts and the first block in one call with their mask.
    both = BlockCache()
    model(ids[:, :5], mask[:, :5, :5] & real[:, :5].unsqueeze(2), place[:, :5], cache=both)
    last = model(ids[:, 5:], cache=both.peek())
    assert_same(last, expected[:, 5:])
    # A noisy block beside the clean one before it: its columns are removed again.
    joined, noisy = BlockCache(), (ids[:, 5:] + 1) % 11
    model(ids[:, :3], real[:, :3], cache=joined)
    sees = torch.cat((mask[:, 5:], mask[:, 3:5]), dim=1)[:, :, [0, 1, 2, 5, 6, 7, 3, 4]]
    beside = model(torch.cat((noisy, ids[:, 3:5]), dim=1), sees, place[:, [5, 6, 7, 3, 4]], cache=joined)
    assert_same(beside[:, :3], model(noisy, cache=both.peek()))
    joined.forget(3, 6)
    assert joined.length == both.length == 5
    assert_same(model(ids[:, 5:], cache=joined), expected[:, 5:])
    with pytest.raises(ValueError, match="holds 3 rows and the call has 1"):
        model(ids[:1, 5:], cache=both.peek())


def test_a_prompt_does_not_see_its_target_and_the_target_sees_the_prompt():
    model, ids = network(causal=False), random_ids(1, 5)
    is_prompt = torch.tensor([[True, True, False, False, False]])
    hidden = model(ids, prompt_mask(is_prompt, None))
    for column, unchanged in ((0, []), (1, []), (2, [0, 1]), (4, [0, 1])):
        other = ids.clone()
        other[0, column] = (ids[0, column] + 1) % 11
        difference = (model(other, prompt_mask(is_prompt, None)) - hidden)[0].abs().amax(1)
        assert (difference == 0).nonzero().flatten().tolist() == unchanged


def test_columns_move_to_the_left_in_their_order():
    wanted = torch.tensor([[False, True, False, True], [False, False, False, False]])
    columns = Columns.of(wanted)
    assert columns.exists.tolist() == [[True, True], [False, False]]
    assert columns.take(torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])).tolist() == [[6, 8], [0, 0]]
    assert Columns.of(wanted[1:]).exists.tolist() == [[False]]
    assert Columns.of(wanted[:0]).exists.shape == (0, 1)
