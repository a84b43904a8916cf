"""A board that is being filled, for the viewer (``xlm.renderers``)."""

from collections.abc import Collection, Iterator, Sequence

from xlm.tasks.sudoku_extreme.boards import NUM_CELLS

_CELL = 32
SIZE = 9 * _CELL + 4


def draw(prompt: str, tokens: Sequence[str], edited: Collection[int]) -> str | None:
    """Draw the board of a puzzle so far.

    Args:
        prompt: The 81 cells of the puzzle, or empty if ``tokens`` are the whole board.
        tokens: The cells, or the missing digits in reading order.
        edited: Positions in ``tokens`` that changed.

    Returns:
        An SVG element; None if this is no board.
    """
    clues = prompt.split()
    if not clues and len(tokens) == NUM_CELLS:
        cells = [(token, "edited" if place in edited else "") for place, token in enumerate(tokens)]
    elif len(clues) == NUM_CELLS:
        answer = iter(enumerate(tokens))
        cells = [(clue, "given") if clue != "0" else _next(answer, edited) for clue in clues]
    else:
        return None
    parts = [_grid()]
    for place, (token, name) in enumerate(cells):
        x, y = (place % 9 + 0.5) * _CELL + 2, (place // 9 + 0.5) * _CELL + 2
        if not token.isdigit():
            continue
        box = ""
        if name == "edited":  # a form beside the colour
            box = (
                f'<rect x="{x - 12:.0f}" y="{y - 12:.0f}" width="24" height="24" rx="4" '
                'class="edited" style="fill:none" stroke-width="2"/>'
            )
        weight = ' font-weight="700"' if name == "given" else ""
        parts.append(
            f'{box}<text x="{x:.0f}" y="{y + 6:.0f}" text-anchor="middle" font-size="18" '
            f'class="{name}"{weight}>{token}</text>'
        )
    return (
        f'<svg viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}" role="img"><title>board</title>'
        + "".join(parts)
        + "</svg>"
    )


def _next(answer: Iterator[tuple[int, str]], edited: Collection[int]) -> tuple[str, str]:
    place, token = next(answer, (-1, ""))
    return token, "edited" if place in edited else ""


def _grid() -> str:
    end = 9 * _CELL + 2
    lines: list[str] = []
    for index in range(10):
        at, width, name = 2 + index * _CELL, 1 + (index % 3 == 0), "given" if index % 3 == 0 else "faint"
        lines.append(f'<line x1="{at}" y1="2" x2="{at}" y2="{end}" stroke-width="{width}" class="{name}"/>')
        lines.append(f'<line x1="2" y1="{at}" x2="{end}" y2="{at}" stroke-width="{width}" class="{name}"/>')
    return "".join(lines)
