"""Edit flows over tiny vocabularies, by enumeration, quadrature and matrix exponentials in float64.

Shares no code with the package: texts are tuples, edits are triples, batches are filled cell by cell.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from xlm_editflow import EditFlow, EditFlowBatch, EditFlowOutput

PAD, BOS, FIRST = 0, 1, 2
SPECIAL = (PAD, BOS)
BLANK = -(2**62)

Text = tuple[int, ...]
Action = tuple[str, int, int]
"""insert (gap, token), delete (position, BLANK), substitute (position, token)."""
Array = np.ndarray
Rates = Callable[[Text, Array], dict[Action, Array]]
"""Rates in the clock du / u of what may happen to a text, at times u (numbers,)."""
Alignment = tuple[Text, Text]
"""The two rows of its columns, with blanks."""


def texts(num_tokens: int, longest: int) -> list[Text]:
    ids = range(FIRST, FIRST + num_tokens)
    return [text for length in range(longest + 1) for text in itertools.product(ids, repeat=length)]


def edited(text: Text, action: Action) -> Text:
    kind, place, token = action
    written = () if kind == "delete" else (token,)
    return (*text[:place], *written, *text[place + (kind != "insert") :])


def actions_on(text: Text, num_tokens: int, limit: int) -> list[Action]:
    ids = range(FIRST, FIRST + num_tokens)
    gaps = range(len(text) + 1) if len(text) < limit else ()
    found: list[Action] = [("insert", gap, token) for gap in gaps for token in ids]
    for place, own in enumerate(text):
        found += [("delete", place, BLANK), *(("substitute", place, token) for token in ids if token != own)]
    return found


def rates_of(model: nn.Module, num_tokens: int, limit: int, prompt: Text = ()) -> Rates:
    """What a network gives for one text, unpadded and in the order of the text."""

    def rates(text: Text, u: Array) -> dict[Action, Array]:
        row = torch.tensor([[*prompt, BOS, *text]]).expand(len(u), -1)
        cells = torch.arange(row.numel())
        named = {}
        if not getattr(model, "prompt_sees_target", True):
            named["prompt"] = (torch.arange(row.shape[1]) < len(prompt)).expand_as(row)
        with torch.no_grad():
            output = model(
                row,
                torch.ones_like(row, dtype=torch.bool),
                time=torch.tensor(u),
                insert_at=cells,
                substitute_at=cells,
                **named,
            )
        operations = output.operation_logits[:, len(prompt) :].numpy()
        tokens = output.token_logits.view(2, *row.shape, -1)[:, :, len(prompt) :, FIRST:].exp().numpy()
        found: dict[Action, Array] = {}
        for action in actions_on(text, num_tokens, limit):
            kind, place, token = action
            if kind == "insert":
                mass = tokens[0, :, place, :num_tokens]
                chance = mass[:, token - FIRST] / mass.sum(1)
                found[action] = np.log1p(u * np.exp(operations[:, place, 0])) * chance
                continue
            delete, substitute = (u * np.exp(operations[:, place + 1, index]) for index in (1, 2))
            if kind == "delete":
                found[action] = delete / (1 + delete + substitute)
            else:
                mass = tokens[1, :, place + 1, :num_tokens]
                chance = mass[:, token - FIRST] / (mass.sum(1) - mass[:, text[place] - FIRST])
                found[action] = substitute / (1 + delete + substitute) * chance
        return found

    return rates


def pending_sets(alignment: Alignment) -> Iterator[tuple[int, ...]]:
    """All sets of edits that remain, as columns."""
    z0, z1 = alignment
    edits = [column for column, (a, b) in enumerate(zip(z0, z1, strict=True)) if a != b]
    for number in range(len(edits) + 1):
        yield from itertools.combinations(edits, number)


def num_edits(alignment: Alignment) -> int:
    return sum(a != b for a, b in zip(*alignment, strict=True))


def between(alignment: Alignment, pending: Sequence[int]) -> tuple[Text, list[Action]]:
    """The text in which these edits remain, and the actions that make them."""
    z0, z1 = alignment
    text: list[int] = []
    actions: list[Action] = []
    for column, (a, b) in enumerate(zip(z0, z1, strict=True)):
        token = a if column in pending else b
        if column in pending:
            kind = "insert" if a == BLANK else "delete" if b == BLANK else "substitute"
            actions.append((kind, len(text), b))
        if token != BLANK:
            text.append(token)
    return tuple(text), actions


def oracle(pairs: Sequence[tuple[float, Alignment]]) -> Rates:
    """E[number of remaining edits equal to an action | text, u], of weighted alignments."""
    masses: defaultdict[Text, list[tuple[float, int, int]]] = defaultdict(list)
    terms: defaultdict[Text, defaultdict[Action, list[tuple[float, int, int]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for weight, alignment in pairs:
        total = num_edits(alignment)
        for pending in pending_sets(alignment):
            text, actions = between(alignment, pending)
            term = (weight, len(pending), total - len(pending))
            masses[text].append(term)
            for action in actions:
                terms[text][action].append(term)

    def evaluate(found: list[tuple[float, int, int]], u: Array) -> Array:
        return sum((weight * u**r * (1 - u) ** rest for weight, r, rest in found), np.zeros_like(u))

    def rates(text: Text, u: Array) -> dict[Action, Array]:
        return {action: evaluate(some, u) / evaluate(masses[text], u) for action, some in terms[text].items()}

    return rates


def generators(rates: Rates, every: Sequence[Text], u: Array) -> Array:
    """(numbers, texts, texts) matrices of the process in the clock -log u; rows are where it leaves from."""
    index = {text: number for number, text in enumerate(every)}
    found = np.zeros((len(u), len(every), len(every)))
    for text in every:
        for action, rate in rates(text, u).items():
            found[:, index[text], index[edited(text, action)]] += rate
            found[:, index[text], index[text]] -= rate
    return found


def generated(
    rates: Rates, every: Sequence[Text], start: dict[Text, float], *, end: float = 14.0, steps: int = 150
) -> dict[Text, float]:
    """What the process ends in: a product of matrix exponentials, each of fourth order (Magnus)."""
    width, offset = end / steps, math.sqrt(3) / 6
    middle = (np.arange(steps) + 0.5) * width
    early, late = (
        torch.tensor(generators(rates, every, np.exp(-(middle + sign * offset * width)))).mT
        for sign in (-1, 1)
    )
    commutator = late @ early - early @ late
    flows = torch.linalg.matrix_exp(width / 2 * (early + late) + math.sqrt(3) / 12 * width**2 * commutator)
    mass = torch.tensor([start.get(text, 0.0) for text in every], dtype=torch.float64)
    for flow in flows:
        mass = flow @ mass
    return dict(zip(every, mass.tolist(), strict=True))


def nodes(number: int, power: int = 1) -> tuple[Array, Array]:
    """Gauss-Legendre times in (0, 1) and their weights, dense at 0 for integrands like log u there."""
    x, w = np.polynomial.legendre.leggauss(number)
    t = (x + 1) / 2
    return t**power, w / 2 * power * t ** (power - 1)


def beta_density(u: Array, a: int, b: int) -> Array:
    return math.gamma(a + b) / math.gamma(a) / math.gamma(b) * u ** (a - 1) * (1 - u) ** (b - 1)


def random_network(
    num_tokens: int, *, seed: int, prompt_sees_target: bool = True, only_insertions: bool = False
) -> EditFlow:
    """A small network whose rates and tokens are far from uniform."""
    model = EditFlow(
        vocab_size=FIRST + num_tokens,
        d_model=8,
        # In one layer the keys and values of a prompt do not depend on what it sees.
        num_layers=1 if prompt_sees_target else 2,
        num_heads=2,
        d_ff=16,
        d_condition=4,
        prompt_sees_target=prompt_sees_target,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The time has 256 features, so that larger weights would not be smooth enough for quadratures.
            scale = 0.03 if "embedding.input" in name else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        if only_insertions:
            model.operation_head.weight[1:] = 0
            model.operation_head.bias[1:] = -800
    return model.double().eval()


class RatesNetwork(nn.Module):
    """A network that gives the rates of a process without prompts, for the texts that it reaches."""

    def __init__(self, rates: Rates, num_tokens: int) -> None:
        super().__init__()
        self.rates, self.num_tokens = rates, num_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        time: Tensor | Callable[[Callable[[Tensor], Tensor]], Tensor],
        insert_at: Tensor,
        substitute_at: Tensor,
    ) -> EditFlowOutput:
        first = (input_ids == BOS).long().argmax(1).tolist()
        ends = attention_mask.sum(1).tolist()
        if position_ids is not None:  # columns of padding may be left of BOS
            ends = [
                input_ids.shape[1] - int((~row[at:]).sum())
                for row, at in zip(attention_mask, first, strict=True)
            ]

        @cache
        def tables(moments: Text) -> tuple[Tensor, Tensor]:
            operations = torch.full((*input_ids.shape, 3), -math.inf, dtype=torch.float64)
            tokens = torch.full(
                (2, *input_ids.shape, FIRST + self.num_tokens), -math.inf, dtype=torch.float64
            )
            for row, u in enumerate(moments):
                text = tuple(input_ids[row, first[row] + 1 : ends[row]].tolist())
                found = {action: float(rate[0]) for action, rate in self.rates(text, np.array([u])).items()}
                sums: defaultdict[tuple[str, int], float] = defaultdict(float)
                for (kind, place, token), rate in found.items():
                    sums[kind, place] += rate
                    column = first[row] + place + (kind != "insert")
                    if kind != "delete" and rate > 0:
                        tokens[int(kind != "insert"), row, column, token] = math.log(rate)
                for (kind, place), rate in sums.items():
                    column = first[row] + place + (kind != "insert")
                    if kind == "insert" and rate > 0:
                        operations[row, column, 0] = math.log(math.expm1(rate) / u)
                    elif rate > 0:
                        others = sum(sums[name, place] for name in ("delete", "substitute"))
                        stays = max(1 - others, 1e-300)
                        operations[row, column, 1 if kind == "delete" else 2] = math.log(rate / stays / u)
            return operations, tokens

        def operations_at(times: Tensor) -> Tensor:
            return tables(tuple(times.tolist()))[0]

        chosen = time(operations_at) if callable(time) else time
        operations, tokens = tables(tuple(chosen.tolist()))
        cells = [tokens[side].flatten(0, 1)[at] for side, at in enumerate((insert_at, substitute_at))]
        return EditFlowOutput(token_logits=torch.cat(cells), operation_logits=operations)


def batch_of(alignment: Alignment, pending: Sequence[int], u: Array, prompt: Text = ()) -> EditFlowBatch:
    """One text between source and target at several times, a row each."""
    rows, start = len(u), len(prompt)
    text, actions = between(alignment, pending)
    ids = torch.tensor([[*prompt, BOS, *text]]).repeat(rows, 1)
    column = torch.arange(ids.shape[1]).repeat(rows, 1)
    slots = sorted({place for kind, place, _ in actions if kind == "insert"})
    places = [place for kind, place, _ in actions if kind == "substitute"]
    written = [(kind, place, token) for kind, place, token in actions if kind != "delete"]
    gone = [start + 1 + place for kind, place, _ in actions if kind == "delete"]

    def of_rows(values: Sequence[int]) -> Tensor:
        return torch.tensor([*values] * rows, dtype=torch.int64)

    def rows_of(values: Sequence[object]) -> Tensor:
        return torch.arange(rows).repeat_interleave(len(values))

    cells = [
        row * len(slots) + slots.index(place)
        if kind == "insert"
        else rows * len(slots) + row * len(places) + places.index(place)
        for row in range(rows)
        for kind, place, _ in written
    ]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "open_slots": column >= start,
        "editable": column > start,
        "target_start": torch.full((rows,), start + 1),
        "insert_row": rows_of(slots),
        "insert_column": of_rows([start + place for place in slots]),
        "substitute_row": rows_of(places),
        "substitute_column": of_rows([start + 1 + place for place in places]),
        "target_row": rows_of(written),
        "target_column": of_rows([start + place + (kind != "insert") for kind, place, _ in written]),
        "target_cell": torch.tensor(cells, dtype=torch.int64),
        "target_token": of_rows([token for _, _, token in written]),
        "target_operation": of_rows([0 if kind == "insert" else 2 for kind, _, _ in written]),
        "delete_row": rows_of(gone),
        "delete_column": of_rows(gone),
        "num_remaining": torch.full((rows,), len(actions)),
        "num_edits": torch.full((rows,), num_edits(alignment)),
        "num_missing": torch.full((rows,), sum(b != BLANK for b in alignment[1])),
        "time": torch.tensor(u),
        "num_draws": torch.tensor(1),
        "source_is_independent": True,
    }


def total_variation(distribution: dict[Text, float], other: dict[Text, float]) -> float:
    every = {*distribution, *other}
    return sum(abs(distribution.get(text, 0.0) - other.get(text, 0.0)) for text in every) / 2


def chi_square(found: dict[Text, int], distribution: dict[Text, float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; texts of probability 0 must not be found."""
    number = sum(found.values())
    possible = {text for text, probability in distribution.items() if probability > 1e-12}
    assert set(found) <= possible, f"impossible texts: {set(found) - possible}"
    statistic = sum(
        (found.get(text, 0) - number * distribution[text]) ** 2 / (number * distribution[text])
        for text in possible
    )
    return statistic, len(possible) - 1
