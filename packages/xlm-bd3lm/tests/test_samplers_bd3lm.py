"""Generation block by block: its distribution by enumeration, the cache, where it stops, windows.

The distribution of every rule inside a block is tested in xlm-modules.
"""

import itertools
import math
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import LogLinear, NoiseSchedule
from xlm.modules.records import Targets
from xlm.modules.samplers import RuleName, Sampler, compose, forbid_tokens, match_expression
from xlm.modules.testing import replay
from xlm_bd3lm import (
    BD3LMDiT,
    BD3LMExample,
    BD3LMPrediction,
    BD3LMPredictor,
    BD3LMPromptCollator,
    BD3LMRotary,
)

from .exact_bd3lm import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    TableNetwork,
    ancestral,
    assert_drawn_from,
    block_by_block,
    prompt_batch,
)

LENGTH, NUM_TOKENS = 4, 2
START = (MASK,) * LENGTH
VOCAB = FIRST + 5
SCHEDULE: NoiseSchedule = LogLinear(eps=0.0)


def table(seed: int = 5, length: int = LENGTH) -> TableNetwork:
    return TableNetwork(length=length, num_tokens=NUM_TOKENS, seed=seed)


def network(kind: type[BD3LMRotary] | type[BD3LMDiT] = BD3LMRotary) -> BD3LMRotary | BD3LMDiT:
    """The same weights on each call."""
    torch.manual_seed(4)
    model = kind(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return model.double().eval()


def predictor(sampler: Sampler | RuleName, block_length: int, **options: Any) -> BD3LMPredictor:
    return BD3LMPredictor(
        schedule=SCHEDULE,
        sampler=sampler,
        mask_id=MASK,
        pad_id=PAD,
        eos_id=EOS,
        block_length=block_length,
        suppressed_ids=[BOS],
        **options,
    )


def collator(block_length: int, limit: int | None, **options: Any) -> BD3LMPromptCollator:
    return BD3LMPromptCollator(
        mask_id=MASK,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        block_length=block_length,
        max_target_length=limit,
        **options,
    )


def draw(predict: BD3LMPredictor, model: nn.Module, rows: int, *, may_end: bool = False) -> BD3LMPrediction:
    seeds = torch.arange(rows) * 7919 + 11
    return predict(model, prompt_batch(START, rows, may_end=may_end), seeds, trace=True)


def texts(prediction: BD3LMPrediction) -> list[Cells]:
    rows = zip(prediction.ids.tolist(), prediction.lengths.tolist(), strict=True)
    return [tuple(ids[:length]) for ids, length in rows]


# Distributions


@pytest.mark.parametrize("may_end", [False, True], ids=["given length", "with ends"])
@pytest.mark.parametrize("block_length", [1, 2, 3])
def test_first_hitting_draws_from_the_model(block_length: int, may_end: bool) -> None:
    model = table()
    distribution = block_by_block(model.prediction(block_length, may_end=may_end), LENGTH, block_length)
    prediction = draw(predictor("first_hitting", block_length, cache=False), model, 6000, may_end=may_end)
    assert_drawn_from(texts(prediction), distribution)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_ancestral_steps_are_those_of_a_block(num_steps: int) -> None:
    model, write = table(), partial(ancestral, num_steps=num_steps)
    distribution = block_by_block(model.prediction(2), LENGTH, 2, write)
    prediction = draw(predictor(compose("ancestral", num_steps=num_steps), 2, cache=False), model, 6000)
    assert_drawn_from(texts(prediction), distribution)
    assert int(prediction.nfe.max()) == 2 * num_steps


def test_weighted_texts_of_a_constraint_have_the_renormalised_distribution() -> None:
    """It ties blocks together, and a text may be cut inside one: within 5 standard errors."""
    model, rows, size = table(), 3000, FIRST + NUM_TOKENS
    constraint = match_expression(f"{FIRST} . .? | ({FIRST + 1} {FIRST})*", size)
    for limit in (LENGTH, LENGTH - 1):
        batch = prompt_batch(START, rows, may_end=True)
        batch["max_length"][:] = limit
        made = predictor("first_hitting", 2, cache=False, constraint=constraint)(
            model, batch, torch.arange(rows), trace=True
        )
        assert made.log_weight is not None
        expected, found = defaultdict[Cells, float](float), defaultdict[Cells, list[float]](list)
        for text, mass in block_by_block(model.prediction(2, may_end=True), LENGTH, 2).items():
            expected[text[:limit]] += mass
        for text, weight in zip(texts(made), made.log_weight.exp().tolist(), strict=True):
            found[text].append(weight)
        pairs = [(FIRST + 1, FIRST) * number for number in range(3)]
        longer = [text for text in expected if text[:1] == (FIRST,) and len(text) in (2, 3)]
        allowed = [*longer, *(text for text in pairs if text in expected)]
        assert set(found) <= set(allowed)
        for text in allowed:
            mean = sum(found[text]) / rows
            error = math.sqrt(sum(weight**2 for weight in found[text]) / rows - mean**2) / math.sqrt(rows)
            assert abs(mean - expected[text]) <= 5 * error + 2 / rows


def test_a_constraint_needs_cells_that_are_written_once() -> None:
    everything = forbid_tokens([], FIRST + NUM_TOKENS)
    with pytest.raises(ValueError, match="a constraint needs a sampler that writes each cell once"):
        predictor("p2", 2, constraint=everything)
    free = texts(draw(predictor("confidence", 2, cache=False), table(), 50, may_end=True))
    same = draw(predictor("confidence", 2, cache=False, constraint=everything), table(), 50, may_end=True)
    assert texts(same) == free
    with pytest.raises(ValueError, match=r"set predictor\.constraint to null"):
        predictor("confidence", 2, constraint=everything)(
            table(), prompt_batch(START, 1), torch.arange(1), trace="full"
        )


def test_blocks_draw_independently() -> None:
    """A network that looks at nothing: blocks with equal columns and turns must not repeat their draws."""
    model = table()
    model.table[:] = 0.0
    written = torch.tensor(texts(draw(predictor("first_hitting", 2, cache=False), model, 4000)))
    same = (written[:, :2] == written[:, 2:]).double().mean()
    assert float(same) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))


def test_blocks_of_one_cell_never_write_padding() -> None:
    model = table()
    model.table[..., PAD] = 50.0
    for block_length, pads in ((1, False), (2, True)):
        prediction = draw(predictor("first_hitting", block_length, cache=False), model, 300, may_end=True)
        trace = prediction.trace
        assert trace is not None
        full = predictor("first_hitting", block_length, cache=False)(
            model, prompt_batch(START, 300, may_end=True), torch.arange(300), trace="full"
        )
        written = (full.trace.operation == 1) & (full.trace.token == PAD)
        assert bool(written.any()) == pads
        assert (full.trace.position[written] % block_length != 0).all()


def test_mask_is_never_written() -> None:
    model = table()
    model.table[..., MASK] = 100.0
    rules: list[RuleName] = ["ancestral", "first_hitting", "confidence", "p2", "remdm_loop", "threshold"]
    for rule in rules:
        prediction = draw(predictor(rule, 2, cache=False), model, 50)
        assert set(prediction.ids.flatten().tolist()) <= set(range(FIRST, VOCAB))


# The cache


def nothing(number: int) -> list[BD3LMExample]:
    return [{"seed": 0} for _ in range(number)]


def prompts() -> list[BD3LMExample]:
    """Prompts of 0 to 4 tokens, given tokens in some targets, an end that is given."""
    examples: list[BD3LMExample] = [
        {"seed": row, "prompt_ids": FIRST + torch.arange(row % 5) % 4} for row in range(6)
    ]
    given = {1: ([FIRST] * 4, [0, 1, 0, 0]), 4: ([FIRST + 1] * 5, [1, 0, 0, 0, 1])}
    for row, (target, fixed) in given.items():
        examples[row]["target_ids"] = torch.tensor(target)
        examples[row]["fixed"] = torch.tensor(fixed).bool()
    return examples


class Recorder(nn.Module):
    """A network and the logits of all its calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, self.logits, self.widths = model, list[Tensor](), list[int]()

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        logits = self.inner(input_ids, *args, **kwargs)
        self.widths.append(input_ids.shape[1])
        self.logits.append(logits)
        return logits


@pytest.mark.parametrize("kind", [BD3LMRotary, BD3LMDiT])
@pytest.mark.parametrize(
    "sampler", ["first_hitting", "confidence", compose("remdm_cap", num_steps=4, eta=0.3)]
)
@pytest.mark.parametrize("window", [None, 6])
def test_the_cache_changes_nothing(
    kind: type[BD3LMRotary] | type[BD3LMDiT], sampler: Sampler | RuleName, window: int | None
) -> None:
    """Logits of every evaluation and all tokens; several prompts, rows that leave, short last blocks."""
    for limit in (14, None):
        examples = prompts()
        # A row without masks in the second block, which gets later what the others evaluate beside it.
        examples[5]["target_ids"] = torch.full((7,), FIRST)
        examples[5]["fixed"] = torch.tensor([0, 0, 0, 1, 1, 1, 0]).bool()
        for row, example in enumerate(examples):
            if limit is None:  # the length is given
                example.pop("fixed", None)
                example["target_ids"] = torch.full((14 - 2 * row,), FIRST)
        batch = collator(3, limit)(examples)
        seeds = torch.arange(6) + 3
        found: list[tuple[BD3LMPrediction, Recorder]] = []
        for cache in (True, False):
            model = Recorder(network(kind))
            predict = predictor(sampler, 3, cache=cache, window_length=window)
            found.append((predict(model, batch, seeds, trace=True), model))
        (kept, with_cache), (anew, without) = found
        assert torch.equal(kept.ids, anew.ids)
        assert torch.equal(kept.lengths, anew.lengths)
        assert kept.trace is not None
        assert anew.trace is not None
        for name in ("step", "row", "position", "token"):
            assert torch.equal(getattr(kept.trace, name), getattr(anew.trace, name)), name
        assert len(with_cache.logits) == len(without.logits) > 3
        for mine, other in zip(with_cache.logits, without.logits, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)
        if window is None:
            # A block, and in its first evaluation the one before; the row without masks reads two.
            assert max(with_cache.widths[1:]) == (6 if limit is None else 9)
        assert torch.equal(kept.nfe, anew.nfe)
        for row in range(6):
            assert replay(kept.trace, row) == list(texts(kept)[row])


def test_rows_without_prompt_beside_rows_with_one() -> None:
    """No BOS: the first block of a row without prompt sees nothing but itself."""
    collate = BD3LMPromptCollator(
        mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=EOS, block_length=2, max_target_length=6
    )
    examples, model = prompts()[:1] + prompts()[2:4], network()
    predict = predictor("first_hitting", 2)
    together = predict(model, collate(examples), torch.arange(3))
    for row, example in enumerate(examples):
        alone = predict(model, collate([example]), torch.tensor([row]))
        assert texts(alone)[0] == texts(together)[row]
        assert alone.nfe[0] == together.nfe[row]


@pytest.mark.parametrize("cache", [True, False])
def test_clean_tokens_take_no_evaluation_of_their_own(cache: bool) -> None:
    """7 cells one at a time: prompt and finished blocks are evaluated beside the first of a block."""
    batch = collator(3, None, default_length=7)([{"seed": 0}])
    model = Recorder(network())
    predict = predictor("first_hitting", 3, cache=cache)
    assert predict(model, batch, torch.tensor([1])).nfe.tolist() == [len(model.widths)] == [7]


def test_a_trunk_without_cache_is_refused_with_the_option() -> None:
    class Plain(nn.Module):
        d_model = 8

        def forward(self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None) -> Tensor:
            return torch.ones(*input_ids.shape, 8)

    model, batch = BD3LMRotary(vocab_size=VOCAB, trunk=Plain()), collator(2, 4)([{"seed": 0}])
    with pytest.raises(ValueError, match=r"model\.trunk \(Plain\) takes no cache.*predictor\.cache=false"):
        predictor("first_hitting", 2)(model, batch, torch.tensor([0]))
    assert predictor("first_hitting", 2, cache=False)(model, batch, torch.tensor([0])).nfe[0] > 0


# Where it stops


def test_a_row_leaves_with_its_end() -> None:
    """Left to right: the evaluations of a row are its tokens and its end."""
    model = network()
    batch = collator(3, 12)(nothing(200))
    prediction = predictor("left_to_right", 3)(model, batch, torch.arange(200), trace=True)
    lengths = prediction.lengths
    assert lengths.min() < 3 < lengths.max()
    assert torch.equal(prediction.nfe, (lengths + 1).clamp(max=12))


def test_a_text_is_cut_at_a_limit_inside_a_block() -> None:
    """The block is written as a whole; texts up to the limit have mass one."""
    model, predict = table(length=4), predictor("left_to_right", 4, cache=False)
    every = [
        text for size in range(3) for text in itertools.product(range(FIRST, FIRST + NUM_TOKENS), repeat=size)
    ]
    batch = collator(4, 2)(nothing(len(every)))
    assert batch["input_ids"].shape[1] == 4
    ids = torch.tensor([[*text, *[PAD] * (2 - len(text))] for text in every])
    targets = Targets(ids, torch.tensor([len(text) for text in every]))
    masses = predict.likelihood(model, batch, targets, torch.arange(len(every))).nll.neg().exp()
    assert float(masses.sum()) == pytest.approx(1.0, abs=1e-12)
    several = collator(4, 2)(nothing(4000))
    prediction = predict(model, several, torch.arange(4000), trace=True)
    assert_drawn_from(texts(prediction), dict(zip(every, masses.tolist(), strict=True)))
    assert prediction.trace is not None
    assert replay(prediction.trace, 0) == list(texts(prediction)[0])
    full = predict(model, several, torch.arange(4000), trace="full")
    assert torch.equal(full.ids, prediction.ids)
    assert torch.equal(full.lengths, prediction.lengths)


def test_an_end_in_the_prompt_ends_nothing() -> None:
    batch = collator(2, None, default_length=4)([{"seed": 0, "prompt_ids": torch.tensor([EOS, PAD])}])
    assert predictor("first_hitting", 2)(network(), batch, torch.tensor([0])).lengths.tolist() == [4]


def test_finished_blocks_are_frozen() -> None:
    """Remasking acts inside the block that is written."""
    batch = collator(3, None, default_length=9)(nothing(20))
    sampler = compose("remdm_rescale", num_steps=6, eta=0.8)
    trace = predictor(sampler, 3)(network(), batch, torch.arange(20), trace=True).trace
    assert trace is not None
    writes = trace.operation == 1
    assert (trace.token[writes] == MASK).any()
    for row in range(20):
        blocks = trace.position[writes & (trace.row == row)] // 3
        assert (blocks.diff() >= 0).all()


# Beyond the length of the training


def test_a_window_is_a_fresh_evaluation_of_what_it_shows() -> None:
    """Blocks of 2 in windows of 4: block b is drawn as the second block of a row [prompt, block b - 1]."""
    model, seeds = network(), torch.arange(40)
    example: BD3LMExample = {"seed": 0, "prompt_ids": torch.tensor([FIRST + 2, FIRST])}
    batch = collator(2, None, default_length=8)([example] * 40)
    recorder = Recorder(model)
    prediction = predictor("left_to_right", 2, window_length=4)(recorder, batch, seeds)
    assert recorder.widths == [5, 2, 4, 2, 7, 2, 7, 2], "what was not evaluated yet, and the block"
    for block in range(1, 4):
        before = prediction.ids[:, 2 * block - 2 : 2 * block]
        ids = torch.cat((torch.tensor([FIRST + 2, FIRST, BOS]).expand(40, -1), before), dim=1)
        numbers = torch.tensor([0, 0, 0, 1, 1, 2, 2])
        noisy = torch.full((40, 2), MASK)
        with torch.no_grad():
            logits = model(
                torch.cat((ids, noisy), dim=1), (numbers.unsqueeze(1) >= numbers).expand(40, 7, 7)
            )[:, 5]
        # Two evaluations for each block; the first of a block has masks alone.
        torch.testing.assert_close(recorder.logits[2 * block], logits, rtol=0, atol=1e-10)
    assert prediction.nfe.tolist() == [8] * 40


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: predictor("ancestral", 2, temperature=-1.0), "temperature must be at least 0"),
        (lambda: predictor("ancestral", 2, top_k=0), "top_k must be None or at least 1"),
        (lambda: predictor("ancestral", 2, window_length=3), "window_length must be None or a multiple of"),
        (lambda: predictor("ancestral", 2, window_length=0), "window_length must be None or a multiple of"),
        (lambda: predictor("ancestral", 0), "block_length must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
