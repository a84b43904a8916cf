"""Who sees whom: the attention mask, one pass against two passes, leaks, neighbours, and the cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules import BlockCache, PiecewiseMask, RotaryTransformer, rotary_angles
from xlm_bd3lm import BD3LMDiT, BD3LMExample, BD3LMLikelihoodCollator, BD3LMLoss, BD3LMRotary
from xlm_bd3lm.streams_bd3lm import Streams, block_mask, spans_of

VOCAB, PAD, MASK, EOS, BOS = 12, 0, 1, 2, 3


def network(kind: type[BD3LMRotary] | type[BD3LMDiT] = BD3LMRotary) -> BD3LMRotary | BD3LMDiT:
    """Two layers with random weights everywhere."""
    model = kind(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


EACH_NETWORK = pytest.mark.parametrize("kind", [BD3LMRotary, BD3LMDiT])


def examples() -> list[BD3LMExample]:
    """Prompts of 1, 3 and 2 tokens, targets of 7, 5 and 6."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "seed": row,
            "prompt_ids": torch.randint(4, VOCAB, (prompt,), generator=generator),
            "target_ids": torch.randint(4, VOCAB, (length,), generator=generator),
        }
        for row, (prompt, length) in enumerate([(1, 7), (3, 5), (2, 6)])
    ]


def batch_of(rows: list[BD3LMExample], block_length: int) -> dict[str, Any]:
    collate = BD3LMLikelihoodCollator(
        mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=None, block_length=block_length
    )
    return dict(collate(rows))


def streams_of(batch: dict[str, Any], **more: Any) -> Streams:
    noisy, clean = (batch["input_ids"], batch["cell_blocks"]), (batch["clean_ids"], batch["clean_blocks"])
    return Streams.of(noisy, clean, batch["prompt_length"], **more)


def logits_of(model: Any, batch: dict[str, Any]) -> Tensor:
    """(rows, cells, vocab) logits of all noisy cells."""
    streams = streams_of(batch)
    with torch.no_grad():
        logits = model(streams.input_ids, streams.attention_mask, streams.position_ids)
    return logits[:, : batch["input_ids"].shape[1]]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_length", [1, 2, 3, 6])
def test_mask_is_the_published_one(reference: dict[str, Tensor], block_length: int) -> None:
    """Where block 0 is one like the others: there is no prompt."""
    blocks = (torch.arange(6) // block_length).unsqueeze(0)
    expected = reference[f"official.mask_block{block_length}"].bool()
    assert torch.equal(block_mask(blocks, blocks)[0], expected)


def test_prompt_and_padding_in_the_mask() -> None:
    """Everything sees the prompt, the prompt sees itself, padding sees padding alone."""
    mask = block_mask(torch.tensor([[1, 2, -1]]), torch.tensor([[0, 0, 1, -1]]))[0].int().tolist()
    assert mask == [
        [1, 0, 0, 1, 1, 0, 0],
        [0, 1, 0, 1, 1, 1, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("block_length", [1, 2, 3, 8])
def test_pieces_of_the_mask_are_the_mask(block_length: int, size: int) -> None:
    """Also of packed blocks. Only padding may see less: pieces of it have the keys that others see."""
    batch = batch_of(examples(), block_length)
    noisy, clean = batch["cell_blocks"], batch["clean_blocks"]
    spans = spans_of(noisy, clean, size=size)
    real = torch.cat((noisy, clean), dim=1) >= 0
    for segments in (None, (noisy.clamp(max=3), clean.clamp(max=3))):
        table = streams_of(batch, segments=segments).attention_mask
        pieces = streams_of(batch, segments=segments, spans=spans).attention_mask
        assert isinstance(pieces, PiecewiseMask)
        assert isinstance(table, Tensor)
        assert torch.equal(pieces.dense()[real], table[real])
        assert pieces.dense().any(2).all(), "no query is without a key"


def test_short_rows_have_one_table() -> None:
    blocks = torch.arange(1, 129).unsqueeze(0)
    assert spans_of(blocks, blocks) == []


def test_scores_that_are_computed() -> None:
    """(1 + 2 / 4) 512^2 in place of four times 512^2: with 4 pieces of each stream."""
    blocks = (1 + torch.arange(512) // 16).unsqueeze(0)
    spans = spans_of(blocks, blocks[:, :496])
    masks = streams_of(
        {
            **dict.fromkeys(("input_ids", "cell_blocks"), blocks),
            **dict.fromkeys(("clean_ids", "clean_blocks"), blocks[:, :496]),
            "prompt_length": torch.zeros(1, dtype=torch.int64),
        },
        spans=spans,
    ).attention_mask
    assert isinstance(masks, PiecewiseMask)
    assert sum(piece.mask.numel() for piece in masks.pieces) <= 1.5 * 512**2


@EACH_NETWORK
def test_loss_in_pieces_is_the_loss(kind: type[BD3LMRotary] | type[BD3LMDiT]) -> None:
    """Long rows; a network that does not take pieces gets the table."""
    generator = torch.Generator().manual_seed(0)
    rows: list[BD3LMExample] = [
        {"seed": row, "target_ids": torch.randint(4, VOCAB, (length,), generator=generator)}
        for row, length in enumerate([150, 131])
    ]
    batch, loss = batch_of(rows, 5), BD3LMLoss(mask_id=MASK, pad_id=PAD, eos_id=None)
    model, masks = network(kind), list[object]()
    trunk = model.transformer
    assert isinstance(trunk, torch.nn.Module)

    def note(_: torch.nn.Module, given: Any) -> None:
        masks.append(given[1])

    trunk.register_forward_pre_hook(note)
    found = []
    for takes in (True, False):
        model.zero_grad()
        model.takes_piecewise_mask = takes
        output = loss(model, batch)  # type: ignore[arg-type]  # a dict
        output.loss_sum.backward()
        assert isinstance(masks[-1], PiecewiseMask) == takes
        found.append([output.loss_sum.detach(), *(weight.grad for weight in model.parameters())])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.slow  # the compiler is imported
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_is_attention_in_pieces() -> None:
    """Forward only: FlexAttention has no gradient on a CPU. Padding, and packed blocks."""
    blocks = (1 + torch.arange(150) // 5).expand(2, -1).clone()
    blocks[1, 131:] = -1
    batch = {
        **dict.fromkeys(("input_ids", "clean_ids"), torch.arange(300).view(2, 150) % 8 + 4),
        **dict.fromkeys(("cell_blocks", "clean_blocks"), blocks),
        "prompt_length": torch.tensor([0, 0]),
    }
    real = torch.cat((blocks, blocks), dim=1) > 0
    model, spans = network(), spans_of(blocks, blocks)
    for segments in (None, (blocks // 10, blocks // 10)):
        found = []
        for flex in (False, True):
            streams = streams_of(batch, segments=segments, spans=spans, flex=flex)
            assert isinstance(streams.attention_mask, PiecewiseMask)
            assert (streams.attention_mask.block_mask is not None) == flex
            with torch.no_grad():
                found.append(model(streams.input_ids, streams.attention_mask, streams.position_ids)[real])
        assert_same(found[1], found[0])


def test_both_streams_have_the_same_positions() -> None:
    batch = batch_of(examples(), 2)
    streams = streams_of(batch)
    assert streams.position_ids[0].tolist()[:7] == [2, 3, 4, 5, 6, 7, 8]
    assert streams.position_ids[0].tolist()[7:15] == list(range(8))
    assert streams.position_ids[1].tolist()[:5] == [4, 5, 6, 7, 8]
    assert batch["clean_ids"][1, 4:8].tolist() == batch["target_ids"][1, :4].tolist()
    assert batch["clean_ids"].shape[1] == 8, "the last block of a row is not there"


def test_logits_of_the_authors_network(reference: dict[str, Tensor]) -> None:
    """Weights, [x_t ; x_0] and blocks as there, in float32."""
    names = {
        "vocab_embed.embedding": "transformer.embedding.weight",
        "sigma_map.mlp.0": "noise_embedding.input",
        "sigma_map.mlp.2": "noise_embedding.output",
        "norm1": "attention_norm",
        "norm2": "feed_forward_norm",
        "attn_qkv": "attention.qkv",
        "attn_out": "attention.output",
        "mlp.0": "feed_forward.input",
        "mlp.2": "feed_forward.output",
        "adaLN_modulation": "modulation",
        "output_layer.norm_final": "transformer.final_norm",
        "output_layer.modulation": "transformer.final_modulation",
        "output_layer.linear": "token_head",
        "blocks.": "transformer.blocks.",
    }
    state: dict[str, Tensor] = {}
    for key, value in reference.items():
        if key.startswith("w.dit."):
            name = key.removeprefix("w.dit.")
            for old, new in names.items():
                name = name.replace(old, new)
            state[name] = value
    model = BD3LMDiT(vocab_size=11, d_model=16, num_layers=2, num_heads=2, d_condition=6)
    model.load_state_dict(state)
    blocks = (torch.arange(6) // 2).expand(3, -1)
    noisy, clean = (reference["official.x_t.f64"], blocks), (reference["in.x0"], blocks)
    streams = Streams.of(noisy, clean, torch.zeros(3, dtype=torch.int64))
    with torch.no_grad():
        logits = model.eval()(streams.input_ids, streams.attention_mask, streams.position_ids)
    torch.testing.assert_close(logits[:, :6], reference["official.dit.logits_xt_x0"], rtol=1e-4, atol=1e-5)


def two_passes(model: BD3LMRotary, batch: dict[str, Any]) -> Tensor:
    """Algorithm 1 of the paper: the clean stream alone, keeping keys and values, then the noisy blocks."""
    trunk = model.transformer
    assert isinstance(trunk, RotaryTransformer)
    streams, cells = streams_of(batch), batch["input_ids"].shape[1]
    mask = streams.attention_mask
    assert isinstance(mask, Tensor)
    parts = []
    for columns in (slice(cells, None), slice(0, cells)):
        position_ids = streams.position_ids[:, columns]
        angles = rotary_angles(position_ids, trunk.rotary_dim, dtype=torch.float64)
        parts.append((trunk.embedding(streams.input_ids[:, columns]), angles))
    (clean, clean_angles), (noisy, noisy_angles) = parts
    of_clean = mask[:, None, cells:, cells:]
    of_noisy = mask[:, None, :cells].roll(-cells, dims=3)  # clean keys, then noisy ones
    blocks: Any = trunk.blocks
    for block in blocks:
        query, key, value = block.attention.project(block.attention_norm(clean), *clean_angles)
        clean = clean + block.attention.attend(query, key, value, of_clean)
        clean = clean + block.feed_forward(block.feed_forward_norm(clean))
        query, own_key, own_value = block.attention.project(block.attention_norm(noisy), *noisy_angles)
        keys, values = torch.cat((key, own_key), dim=2), torch.cat((value, own_value), dim=2)
        noisy = noisy + block.attention.attend(query, keys, values, of_noisy)
        noisy = noisy + block.feed_forward(block.feed_forward_norm(noisy))
    return model.token_head(trunk.final_norm(noisy))


@pytest.mark.parametrize("block_length", [1, 2, 3, 8])
def test_one_pass_is_two_passes(block_length: int) -> None:
    model, batch = network(), batch_of(examples(), block_length)
    assert isinstance(model, BD3LMRotary)
    with torch.no_grad():
        expected = two_passes(model, batch)
    real = batch["cell_blocks"] > 0
    assert_same(logits_of(model, batch)[real], expected[real])


@EACH_NETWORK
@pytest.mark.parametrize("block_length", [1, 2, 3, 8])
def test_one_pass_is_block_after_block_with_a_cache(
    kind: type[BD3LMRotary] | type[BD3LMDiT], block_length: int
) -> None:
    """Clean prompt and blocks appended, noisy blocks peeked at, twice: a peek leaves nothing behind."""
    model = network(kind)
    for example in examples():
        batch = batch_of([example], block_length)
        expected, cache, found = logits_of(model, batch), BlockCache(), []
        with torch.no_grad():
            model(
                torch.cat((example.get("prompt_ids", torch.empty(0)), torch.tensor([BOS])))[None], cache=cache
            )
            cells = torch.arange(batch["input_ids"].shape[1]).split(block_length)
            for cell in cells:
                model(torch.full_like(cell, MASK)[None], cache=cache.peek())
                found.append(model(batch["input_ids"][:, cell], cache=cache.peek()))
                model(batch["target_ids"][:, cell], cache=cache)
        assert_same(torch.cat(found, dim=1), expected)


@EACH_NETWORK
def test_a_block_depends_on_itself_and_the_clean_past_only(kind: type[BD3LMRotary] | type[BD3LMDiT]) -> None:
    model, batch = network(kind), batch_of(examples(), 2)
    before = logits_of(model, batch)
    start = int(batch["prompt_length"][0])
    for block in (1, 2, 3, 4):
        own = batch["cell_blocks"][0] == block
        # Noisy cells of other blocks, and clean ones of this and later blocks, change nothing at all.
        changed = {**batch, "input_ids": batch["input_ids"].clone(), "clean_ids": batch["clean_ids"].clone()}
        others = (batch["cell_blocks"][0] > 0) & ~own
        changed["input_ids"][0, others] = 5 + (batch["input_ids"][0, others] + 1) % 5
        late = batch["clean_blocks"][0] >= block
        changed["clean_ids"][0, late] = 5 + (batch["clean_ids"][0, late] + 1) % 5
        assert torch.equal(logits_of(model, changed)[0, own], before[0, own])
        # Each of its own cells and each clean token before it does.
        for name, columns in (("input_ids", own), ("clean_ids", (batch["clean_blocks"][0] >= 0) & ~late)):
            for column in columns.nonzero().flatten().tolist():
                other = {**batch, name: batch[name].clone()}
                other[name][0, column] = 4 + (batch[name][0, column] + 1) % 8
                assert (logits_of(model, other)[0, own] - before[0, own]).abs().amax(1).min() > 1e-9
    assert start == 2


@EACH_NETWORK
def test_a_row_is_the_same_alone(kind: type[BD3LMRotary] | type[BD3LMDiT]) -> None:
    model, rows = network(kind), examples()
    together = logits_of(model, batch_of(rows, 3))
    for row, example in enumerate(rows):
        alone = logits_of(model, batch_of([example], 3))[0]
        assert_same(together[row, : len(alone)], alone)
    assert together.isfinite().all()


def test_keys_of_a_noisy_block_in_the_cache_would_change_the_next_one() -> None:
    """Why a finished block is evaluated once more."""
    model, ids = network(), torch.tensor([[BOS, 5, 6]])
    found = []
    for block in (torch.tensor([[MASK, 8]]), torch.tensor([[7, 8]])):
        cache = BlockCache()
        with torch.no_grad():
            model(ids, cache=cache)
            model(block, cache=cache)
            found.append(model(torch.tensor([[MASK, MASK]]), cache=cache.peek()))
    assert (found[0] - found[1]).abs().max() > 0.1
