"""The job ``view``: a page of recorded generations, or their replay in the terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from xlm.core.command.cli import show
from xlm.eval.viewing import terminal
from xlm.eval.viewing.page import page
from xlm.eval.viewing.traces import read_traces

PAGE = "view.html"


def write_page(folder: Path) -> Path:
    """Write the page of the recorded generations of a run or a later evaluation into its folder."""
    from xlm.core.saving.checkpoints import write_text_atomically  # imports torch, unlike ``view``

    path = folder / PAGE
    write_text_atomically(path, page(read_traces([str(folder)])))
    return path


def view(runs: Sequence[str], output_dir: str, *, in_terminal: bool, seconds: float) -> None:
    """Write ``view.html``, or play in the terminal.

    Raises:
        XLMError: If there is no run, or a run has no traces.
    """
    groups = read_traces(runs)
    if in_terminal:
        terminal.play(groups, seconds=seconds)
        return
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    path = Path(output_dir).expanduser() / "view" / stamp / PAGE
    path.parent.mkdir(parents=True)
    path.write_text(page(groups), encoding="utf-8")
    show(f"{len(groups)} texts of {', '.join(runs)}\n\nfiles\n  {path}")
