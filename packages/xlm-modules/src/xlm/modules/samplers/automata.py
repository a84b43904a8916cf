"""Automata over token ids: which texts a constraint allows, by forbidden tokens or a regular expression."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.modules.options import require

_SYMBOL = re.compile(r"\s*(\d+|[()\[\]^|*+?.-])")


@dataclass(frozen=True)
class Automaton:
    """A deterministic finite automaton, which starts in state 0.

    Raises:
        ValueError: If the tables do not fit together, or no text is allowed.
    """

    transitions: Int[Tensor, "states vocab"]
    """The state after each token; -1 where no allowed text goes on with it."""
    accepting: Bool[Tensor, " states"]
    """True at states in which a text may end."""

    def __post_init__(self) -> None:
        states = len(self.accepting)
        fits = self.transitions.ndim == 2 and len(self.transitions) == states
        fits = fits and bool(((self.transitions >= -1) & (self.transitions < states)).all())
        shape = tuple(self.transitions.shape)
        require(fits, "transitions", shape, f"a table of states from -1 to {states - 1} with {states} rows")
        require(bool(self.accepting.any()), "accepting", [], "true at a state: otherwise no text is allowed")


def forbid_tokens(token_ids: Sequence[int], vocab_size: int) -> Automaton:
    """Allow all texts without some tokens.

    Args:
        token_ids: The forbidden ids.
        vocab_size: Size of the vocabulary.

    Raises:
        ValueError: If an id is outside the vocabulary.
    """
    ids = list(token_ids)
    inside = all(0 <= token < vocab_size for token in ids)
    require(inside, "token_ids", ids, f"ids below vocab_size={vocab_size}")
    transitions = torch.zeros(1, vocab_size, dtype=torch.int64)
    transitions[0, ids] = -1
    return Automaton(transitions, torch.ones(1, dtype=torch.bool))


def match_expression(expression: str, vocab_size: int) -> Automaton:
    """Allow the texts that a regular expression matches as a whole.

    Its symbols are token ids, separated by spaces: ``7 (8|9)* [10-19]+ 3?``. A dot is any token, brackets are
    one of some, ``[^3 5]`` all others; ``|``, ``*``, ``+``, ``?`` and parentheses are as usual.

    Args:
        expression: The expression.
        vocab_size: Size of the vocabulary.

    Raises:
        ValueError: If the expression is none, names an id outside the vocabulary, or matches no text.
    """
    builder = _Builder(_symbols(expression), vocab_size)
    start, end = builder.alternatives()
    builder.expect(None)
    return _determinise(builder, start, end, expression)


def _symbols(expression: str) -> list[str]:
    found: list[str] = []
    place = 0
    while expression[place:].strip():
        match = _SYMBOL.match(expression, place)
        if match is None:
            rest = expression[place:].strip()
            raise ValueError(
                f"expression must be of token ids, spaces and ( ) [ ] ^ - | * + ? ., got {rest!r}"
            )
        found.append(match[1])
        place = match.end()
    return found


@dataclass
class _Builder:
    """Reads an expression into states, free moves between them, and moves by a set of tokens."""

    symbols: list[str]
    vocab_size: int
    place: int = 0
    num_states: int = 0
    free: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    moves: list[tuple[int, Tensor, int]] = field(default_factory=list[tuple[int, Tensor, int]])
    """State, tokens (vocab,), next state."""

    def alternatives(self) -> tuple[int, int]:
        """Start and end of what ``|`` separates."""
        start, end = self._state(), self._state()
        while True:
            first, last = self._sequence()
            self.free += [(start, first), (last, end)]
            if self._next() != "|":
                return start, end
            self.place += 1

    def expect(self, symbol: str | None) -> None:
        """Read over a symbol, or the end."""
        if self._next() != symbol:
            found, wanted = self._next() or "its end", symbol or "its end"
            raise ValueError(f"expression must go on with {wanted} behind symbol {self.place}, got {found}")
        self.place += 1

    def _next(self) -> str | None:
        return self.symbols[self.place] if self.place < len(self.symbols) else None

    def _state(self) -> int:
        self.num_states += 1
        return self.num_states - 1

    def _sequence(self) -> tuple[int, int]:
        start = end = self._state()
        while self._next() not in (None, "|", ")"):
            first, last = self._repeated()
            self.free.append((end, first))
            end = last
        return start, end

    def _repeated(self) -> tuple[int, int]:
        start, end = self._single()
        while (symbol := self._next()) in ("*", "+", "?"):
            self.place += 1
            first, last = self._state(), self._state()
            self.free += [(first, start), (end, last)]
            if symbol != "?":
                self.free.append((end, start))
            if symbol != "+":
                self.free.append((first, last))
            start, end = first, last
        return start, end

    def _single(self) -> tuple[int, int]:
        symbol = self._next()
        if symbol == "(":
            self.place += 1
            both = self.alternatives()
            self.expect(")")
            return both
        tokens = torch.zeros(self.vocab_size, dtype=torch.bool)
        if symbol == "[":
            self.place += 1
            self._read_set(tokens)
        elif symbol == ".":
            self.place += 1
            tokens[:] = True
        else:
            tokens[self._id()] = True
        start, end = self._state(), self._state()
        self.moves.append((start, tokens, end))
        return start, end

    def _read_set(self, tokens: Tensor) -> None:
        excludes = self._next() == "^"
        self.place += excludes
        while self._next() != "]":
            first = last = self._id()
            if self._next() == "-":
                self.place += 1
                last = self._id()
            tokens[first : last + 1] = True
        self.place += 1
        if excludes:
            tokens.logical_not_()

    def _id(self) -> int:
        symbol = self._next()
        if symbol is None or not symbol.isdigit():
            raise ValueError(
                f"expression must have a token id behind symbol {self.place}, got {symbol or 'its end'}"
            )
        require(int(symbol) < self.vocab_size, "token id", int(symbol), f"below {self.vocab_size}")
        self.place += 1
        return int(symbol)


def _determinise(builder: _Builder, start: int, end: int, expression: str) -> Automaton:
    """Sets of states that a text can lead to, as states."""
    follows: dict[int, list[int]] = {}
    for before, after in builder.free:
        follows.setdefault(before, []).append(after)

    def closure(states: Sequence[int]) -> frozenset[int]:
        found, waiting = set(states), list(states)
        while waiting:
            for after in follows.get(waiting.pop(), ()):
                if after not in found:
                    found.add(after)
                    waiting.append(after)
        return frozenset(found)

    sets = [closure([start])]
    number = {sets[0]: 0}
    rows: list[Tensor] = []
    while len(rows) < len(sets):
        moves = [move for move in builder.moves if move[0] in sets[len(rows)]]
        row = torch.full((builder.vocab_size,), -1, dtype=torch.int64)
        rows.append(row)
        if not moves:
            continue
        possible, kind = torch.stack([tokens for _, tokens, _ in moves]).unique(dim=1, return_inverse=True)
        for column, chosen in enumerate(possible.T.tolist()):
            after = closure([move[2] for move, is_chosen in zip(moves, chosen, strict=True) if is_chosen])
            if after:
                if after not in number:
                    number[after] = len(sets)
                    sets.append(after)
                row[kind == column] = number[after]
    accepting = torch.tensor([end in states for states in sets])
    require(bool(accepting.any()), "expression", expression, "one that matches some text")
    return Automaton(torch.stack(rows), accepting)
