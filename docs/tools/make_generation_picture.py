"""Draws ``docs/assets/generation.svg``: one text written by three families, edit by edit, from real traces.

    uv run python docs/tools/make_generation_picture.py

Each family is trained for about ten seconds on the sentences below, a word being a token, and writes one from
nothing. What moves in the picture are the edits of the predictor's trace, in their order; nothing is drawn by
hand. The picture is animated by CSS alone, so it works wherever pictures are shown, and follows the reader's
light or dark setting. It begins with the finished texts, so whatever draws it without moving (reduced motion,
a printer, a still) shows its last frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import xlm_arlm
import xlm_ilm
import xlm_mdlm
from xlm.core.evaluation.predictions import INSERT
from xlm.core.protocols import Prediction, Trace
from xlm.modules import LogLinear, row_seeds

SENTENCES = [
    "the quick fox jumps over the lazy dog",
    "an old owl sleeps under the silent moon",
    "a small boat drifts across the cold lake",
    "the young poet writes about the open sea",
]
SPECIAL = ["[PAD]", "[MASK]", "[EOS]", "[BOS]", "[CLS]"]
PAD, MASK, EOS, BOS, CLS = range(5)
WORDS = SPECIAL + sorted({word for sentence in SENTENCES for word in sentence.split()})
LENGTH = 8
NETWORK: dict[str, Any] = {"vocab_size": len(WORDS), "d_model": 64, "num_layers": 2, "num_heads": 4}


@dataclass(frozen=True)
class Family:
    """The parts of a family that the script uses, made for these sentences."""

    title: str
    model: nn.Module
    collate: Callable[[Any], Any]
    loss: Callable[[nn.Module, Any], Any]
    collate_prompts: Callable[[Any], Any]
    predict: Callable[..., Prediction]


def families() -> list[Family]:
    """Left to right, unmasking, insertion."""
    row: dict[str, Any] = {"pad_id": PAD, "mask_id": MASK, "eos_id": EOS}
    cells: dict[str, Any] = row | {"bos_id": BOS, "target_length": LENGTH}
    start = {"pad_id": PAD, "cls_id": CLS, "bos_id": BOS}
    schedule = LogLinear()
    return [
        Family(
            "left to right  ·  xlm-arlm",
            xlm_arlm.ARLM(**NETWORK),
            xlm_arlm.ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=EOS),
            xlm_arlm.ARLMLoss(),
            xlm_arlm.ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=LENGTH),
            xlm_arlm.ARLMPredictor(pad_id=PAD, eos_id=EOS, suppressed_ids=[PAD, MASK, BOS, CLS]),
        ),
        Family(
            "unmasking  ·  xlm-mdlm",
            xlm_mdlm.MDLMRotary(**NETWORK),
            xlm_mdlm.MDLMCollator(schedule=schedule, **cells),
            xlm_mdlm.MDLMLoss(**row, suppressed_ids=[BOS, CLS]),
            xlm_mdlm.MDLMPromptCollator(**cells),
            xlm_mdlm.MDLMPredictor(
                schedule=schedule, sampler="first_hitting", **row, suppressed_ids=[BOS, CLS]
            ),
        ),
        Family(
            "insertion  ·  xlm-ilm",
            xlm_ilm.ILM(**NETWORK),
            xlm_ilm.ILMCollator(**start),
            xlm_ilm.ILMLoss(row_weight="length_plus_one", suppressed_ids=list(range(5))),
            xlm_ilm.ILMPromptCollator(**start, max_length=LENGTH),
            xlm_ilm.ILMPredictor(pad_id=PAD, suppressed_ids=list(range(5)), stop="threshold"),
        ),
    ]


def train(family: Family, steps: int) -> None:
    """Train on the sentences."""
    ids = [torch.tensor([WORDS.index(word) for word in sentence.split()]) for sentence in SENTENCES]
    targets = ids * (64 // len(ids))
    optimizer = torch.optim.AdamW(family.model.parameters(), lr=2e-3)
    for step in range(steps):
        seeds = row_seeds(0, step, torch.arange(len(targets))).tolist()
        rows = zip(seeds, targets, strict=True)
        examples = [{"seed": seed, "target_ids": target} for seed, target in rows]
        output = family.loss(family.model, family.collate(examples))
        optimizer.zero_grad()
        (output.loss_sum / output.loss_count).backward()
        optimizer.step()
    family.model.eval()


@dataclass
class Word:
    """A word of the finished text: the step that inserted it, and that wrote it over a mask, if any."""

    text: str
    since: int
    unmasked: int | None = None


def write(family: Family, sentence: str) -> list[Word]:
    """The words of the first of many draws that is ``sentence``."""
    num_rows = 64
    batch = family.collate_prompts([{"seed": 0}] * num_rows)
    with torch.no_grad():
        prediction = family.predict(family.model, batch, torch.arange(num_rows), trace=True)
    assert prediction.trace is not None
    for row in range(num_rows):
        words = history(prediction.trace, row)
        if " ".join(word.text for word in words) == sentence:
            return words
    raise SystemExit(f"{family.title}: none of {num_rows} texts is {sentence!r}; train longer")


def history(trace: Trace, row: int) -> list[Word]:
    """What the edits of a row did, in the order of the finished text."""
    chosen = trace.row == row
    columns = (trace.step, trace.operation, trace.position, trace.token)
    words: list[Word] = []
    for step, operation, position, token in zip(*(c[chosen].tolist() for c in columns), strict=True):
        if operation == INSERT:
            words.insert(position, Word(WORDS[token], step))
        else:
            words[position].text, words[position].unmasked = WORDS[token], step
    return [word for word in words if word.text not in SPECIAL]


# ---- drawing --------------------------------------------------------------------------------------------

STEP, PAUSE = 0.7, 3.0  # seconds
LETTER, GAP, SIZE = 9.0, 14, 15  # width of a letter, space between words, font size, in pixels
LEFT, TOP, ROW, WIDTH = 24, 34, 66, 520
STYLE = """
svg { --ink: #1f2328; --quiet: #6e7781; --new: #3f51b5; --mask: #d0d7de; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --quiet: #9198a1; --new: #9fa8ff; --mask: #3d444d; }
}
.title { font: 13px system-ui, sans-serif; fill: #6e7781; fill: var(--quiet); }
.word { font: 15px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328; fill: var(--ink); }
.mask { fill: #d0d7de; fill: var(--mask); opacity: 0; }
"""


def draw(rows: Sequence[tuple[str, list[Word]]]) -> str:
    """The picture: the finished texts, then the writing of them. Without animation the former alone."""
    last = max(word.unmasked or word.since for _, words in rows for word in words)
    duration = PAUSE + STEP * (last + 1)
    rules: list[str] = []
    shapes: list[str] = []
    for number, (title, words) in enumerate(rows):
        y = TOP + ROW * number
        shapes.append(f'<text class="title" x="{LEFT}" y="{y}">{title}</text>')
        for index, word in enumerate(words):
            name = f"r{number}w{index}"
            places = [_place(words, index, step) for step in range(last + 1)]
            left = LEFT + places[-1]
            seen = word.since if word.unmasked is None else word.unmasked
            rules.append(_word_rule(name, places, seen, duration))
            shapes.append(
                f'<text id="{name}" class="word" x="{left:g}" y="{y + 27}" textLength="{_width(word)}">'
                f"{word.text}</text>"
            )
            if word.unmasked is not None:
                rules.append(_mask_rule(f"{name}m", word.since, word.unmasked, duration))
                shapes.append(
                    f'<rect id="{name}m" class="mask" x="{left:g}" y="{y + 13}" rx="4"'
                    f' width="{_width(word)}" height="18" opacity="0"/>'
                )
    height = TOP + ROW * len(rows) - 20
    animation = "@media screen and (prefers-reduced-motion: no-preference) {\n" + "\n".join(rules) + "\n}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img">\n'
        "<title>One sentence written from left to right, by unmasking, and by insertion</title>\n"
        f"<style>{STYLE}{animation}</style>\n" + "\n".join(shapes) + "\n</svg>\n"
    )


def _width(word: Word) -> str:
    return f"{LETTER * len(word.text):g}"


def _place(words: Sequence[Word], index: int, step: int) -> float:
    """Left edge of a word at a step: right of the words before it that are there by then."""
    return sum(LETTER * len(word.text) + GAP for word in words[:index] if word.since <= step)


def _word_rule(name: str, places: Sequence[float], seen: int, duration: float) -> str:
    shifts = [f"transform: translateX({place - places[-1]:g}px)" for place in places]
    finished = f"opacity: 1; {shifts[-1]}; fill: var(--ink)"
    frames = [
        f"0%, {_percent(-1, duration)} {{ {finished} }}",
        f"{_percent(-0.65, duration)} {{ opacity: 0; {shifts[-1]} }}",
        f"{_percent(0, duration)} {{ opacity: 0; {shifts[0]} }}",
    ]
    for step in range(1, len(places)):
        before = f"opacity: {int(step - 1 >= seen)}; {shifts[step - 1]}"
        colour = "var(--new)" if step == seen else "var(--ink)"
        after = f"opacity: {int(step >= seen)}; {shifts[step]}; fill: {colour}"
        frames.append(
            f"{_percent(step, duration)} {{ {before} }} {_percent(step + 0.35, duration)} {{ {after} }}"
        )
    return _animation(name, [*frames, f"100% {{ {finished} }}"], duration)


def _mask_rule(name: str, since: int, unmasked: int, duration: float) -> str:
    hidden = f"0%, {_percent(since - 0.35, duration)} {{ opacity: 0 }}"
    come, go = _percent(since, duration), _percent(unmasked, duration)
    end = _percent(unmasked + 0.35, duration)
    frames = [hidden, f"{come} {{ opacity: 1 }}", f"{go} {{ opacity: 1 }} {end}, 100% {{ opacity: 0 }}"]
    return _animation(name, frames, duration)


def _animation(name: str, frames: Sequence[str], duration: float) -> str:
    body = " ".join(frames)
    return f"#{name} {{ animation: {name} {duration:g}s infinite }} @keyframes {name} {{ {body} }}"


def _percent(step: float, duration: float) -> str:
    """When a step begins: after a pause in which the finished texts are shown."""
    return f"{100 * (PAUSE + STEP * step) / duration:.2f}%"


def main() -> None:
    """Train, write, draw."""
    torch.manual_seed(0)
    rows: list[tuple[str, list[Word]]] = []
    for family in families():
        train(family, steps=200)
        rows.append((family.title, write(family, SENTENCES[2])))
    Path(__file__).parents[1].joinpath("assets/generation.svg").write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
