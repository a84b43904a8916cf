"""Assertions on generations with an edit of the user."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from xlm.modules import records
from xlm.modules.records import DELETE, INSERT, UserEdit
from xlm.modules.testing.parts import Prediction, Trace, replay, seeds_of_rows, texts_of, to_list


def assert_forks(
    generate: Callable[[Tensor, UserEdit], Prediction],
    plain: Prediction,
    ordinary_ids: Sequence[int],
    name: str,
) -> None:
    """At each step of the first row, an edit without a change gives the same texts, and another one stays.

    Args:
        generate: Called with the seeds and an edit of the user.
        plain: The texts without it, with their trace.
        ordinary_ids: Ids that texts consist of.
        name: For messages.
    """
    trace, fork = plain.trace, partial(generate, seeds_of_rows(len(plain.lengths)))
    assert trace is not None
    mine = (trace.row == 0) & (trace.step > 0)
    for step in sorted(set(to_list(trace.step[mine]))):
        so_far, later = _before_and_after(trace, step)
        state = replay(so_far, 0)
        *_, last = [place for place in to_list(so_far.position[so_far.row == 0]) if place < len(state)]
        # A token that the sampler would write again or delete later stays if it is the user's.
        _, is_final = _followed(later, last)
        if state[last] in ordinary_ids and is_final:
            same = fork(UserEdit(0, step, last, state[last]))
            assert texts_of(same) == texts_of(plain), f"{name}: other texts by an edit without a change"
        masks = [position for position, token in enumerate(state) if token not in ordinary_ids]
        _assert_stays(fork, plain, state, _another(state, last, step, ordinary_ids), name)
        if masks:
            nearest = min(masks, key=lambda position: abs(position - last))
            with _may_be_hidden():
                _assert_stays(fork, plain, state, _another(state, nearest, step, ordinary_ids), name)


@contextmanager
def _may_be_hidden() -> Generator[None]:
    """An edit of a mask that the network is not shown yet, as in a later block, which is refused."""
    try:
        yield
    except ValueError as error:
        if "is not among the cells that the sampler sees" not in str(error):
            raise


def _another(state: Sequence[int], position: int, step: int, ordinary_ids: Sequence[int]) -> UserEdit:
    """An edit with another token than the one that is there."""
    return UserEdit(0, step, position, next(token for token in ordinary_ids if token != state[position]))


def _assert_stays(
    fork: Callable[[UserEdit], Prediction],
    plain: Prediction,
    state: list[int],
    edit: UserEdit,
    name: str,
) -> None:
    """An edit of a ``state`` changes it alone, and is in the text at the end."""
    found = fork(edit)
    trace = found.trace
    assert trace is not None, f"{name}: a fork without a trace"
    assert texts_of(found)[1:] == texts_of(plain)[1:], f"{name}: an edit of row 0 changes another row"
    text = texts_of(found)[0]
    assert replay(trace, 0) == text, f"{name}: the trace of a fork does not lead to its ids {text}"
    so_far, later = _before_and_after(trace, edit.step)
    edited = [*state]
    edited[edit.position] = edit.token
    both = min(len(edited), len(replay(so_far, 0)))  # cells behind the end are in no trace
    assert replay(so_far, 0)[:both] == edited[:both], f"{name}: step {edit.step} is not that of the trace"
    position, _ = _followed(later, edit.position)
    assert position >= len(text) or text[position] == edit.token, f"{name}: the token of {edit} does not stay"


def _followed(later: Trace, position: int) -> tuple[int, bool]:
    """Where a token of row 0 is after later edits, and whether none of them writes over it or deletes it."""
    of_row = later.row == 0
    edits = zip(to_list(later.operation[of_row]), to_list(later.position[of_row]), strict=True)
    is_final = True
    for operation, place in edits:
        is_final &= operation == INSERT or place != position
        position += (operation == INSERT and place <= position) - (operation == DELETE and place < position)
    return position, is_final


def _before_and_after(trace: Trace, step: int) -> tuple[Trace, Trace]:
    """The edits up to a step, and those behind it."""
    early = trace.step <= step
    names = ("step", "row", "operation", "position", "token")
    first, second = (
        records.Trace(**{name: getattr(trace, name)[chosen] for name in names}) for chosen in (early, ~early)
    )
    return first, second
