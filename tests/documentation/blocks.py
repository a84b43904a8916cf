"""The fenced blocks of every Markdown file of the repository, and the commands in them.

Blocks of ``bash`` and ``python`` are run in order by ``nox -s docs``; ``bash no-run`` and ``python no-run``
are not, and say why in the text around them. A block with ``title="FILE"`` is a file that the reader writes.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    path: Path
    line: int
    language: str
    options: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is to be executed."""
        return self.language in ("bash", "python") and "no-run" not in self.options.split()

    @property
    def title(self) -> str | None:
        """Name of the file that the block is, if it is one."""
        found = re.search(r'title="([^"]+)"', self.options)
        return found.group(1) if found else None

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def markdown_files() -> list[Path]:
    """Every Markdown file of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(path for name in names if (path := ROOT / name).exists())


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a file, in order."""
    text = path.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in FENCE.finditer(text):
        language, _, options = match["info"].strip().partition(" ")
        indent = match["indent"]
        content = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        found.append(Block(path, text.count("\n", 0, match.start()) + 1, language, options, content))
    return found


def shell_commands(text: str) -> Iterator[str]:
    """The commands of a block, one at a time: continued lines joined, here-documents kept whole."""
    pending: list[str] = []
    end_of_document: str | None = None
    for line in text.splitlines():
        pending.append(line)
        if end_of_document is not None:
            if line.strip() != end_of_document:
                continue
            end_of_document = None
        elif match := re.search(r"<<-?\s*['\"]?(\w+)['\"]?", line):
            end_of_document = match.group(1)
            continue
        command = "\n".join(pending)
        if line.endswith("\\") or not _is_complete(command):
            continue
        pending = []
        if command.strip() and not command.strip().startswith("#"):
            yield command.strip()
    assert not pending, f"a command without an end: {pending}"


def _is_complete(command: str) -> bool:
    if "<<" in command:
        return True
    try:
        shlex.split(command, comments=True)
    except ValueError:  # an open quotation mark
        return False
    return True


def xlm_arguments(command: str) -> list[str] | None:
    """Arguments of a call of ``xlm``, without what sets it up; None for any other command."""
    if "<<" in command or re.search(r"(?<![|])\|(?![|])|[;>]", re.sub(r"'[^']*'|\"[^\"]*\"", "", command)):
        return None
    words = shlex.split(command.replace("\\\n", " ").rpartition("&&")[2], comments=True)
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
    return words[1:] if words and words[0] == "xlm" else None
