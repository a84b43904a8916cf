"""Files on this machine as a source: ``source=path/to/files``, and a task's own ``data_files``.

They have the schema of the source, and one of these layouts: a single file or a pattern; a folder with a
file or a sub-folder named after each split; a copy of the repository on the Hub.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import yaml
from datasets.data_files import sanitize_patterns

from xlm.core.config.errors import XLMError
from xlm.core.data.read_files import FORMATS, existing_files, format_of, read_files
from xlm.core.protocols import Row

SAME_SPLIT = (
    ("train", "training"),
    ("validation", "valid", "dev", "val"),
    ("test", "testing", "eval", "evaluation"),
)
"""Names of the same split; the first is the one of `datasets`."""
ABOUT_THE_HUB = {"path", "name", "revision", "token", "data_files", "data_dir", "split", "streaming"}
BESIDE_DATA = re.compile(
    r"(readme|licen[cs]e|notice|requirements|changelog|changes|citation|authors|contributing|copying|"
    r"dataset_infos?|dataset_dict|state|croissant|manifest)\b.*",
    re.IGNORECASE,
)
"""Names of files beside the data that are not data."""

Splits = dict[str, list[Path]]


def read_data_files(
    *, path: str, data_files: Any, split: str, streaming: bool = False, **arguments: Any
) -> Iterable[Row]:
    """Rows of local files of a format, with the arguments of ``datasets.load_dataset``.

    Raises:
        XLMError: If no file matches, or one cannot be read.
    """
    splits: Splits = {}
    for name, patterns in sanitize_patterns(data_files).items():
        splits[name] = [file for pattern in patterns for file in existing_files(str(pattern))]
        if not splits[name]:
            raise XLMError(f"task.source.data_files: no file matches {', '.join(map(str, patterns))}")
    return _read(splits, path, split, arguments, streaming, "task.source.data_files")


def is_remote(data_files: object) -> bool:
    """Whether no files are named, or one of them is remote."""
    patterns = chain(*sanitize_patterns(cast("Any", data_files)).values()) if data_files else ["://"]
    return any("://" in str(pattern) for pattern in patterns)


class LocalCopy:
    """Local files of a data set.

    Args:
        path: A folder, a file, or a pattern of files; an existing path is used literally, even if it contains
            characters of a pattern.
        arguments: Arguments of ``datasets.load_dataset``. Those that determine how files are read are used
            (``sample_by``, ``sep``, ``data_files`` in the folder, ...), those that locate them are not.

    Raises:
        XLMError: If there are no such files, none is readable, or their format is ambiguous.
    """

    def __init__(self, path: Path, arguments: Mapping[str, Any]) -> None:
        self.path = path.expanduser()
        files = existing_files(str(self.path))
        readable = [file for file in files if format_of(file) is not None]
        if not readable:
            raise XLMError(
                f"source={path}: {'there are no files' if not files else 'none of the files is readable'}; "
                f"allowed are a folder or files of these kinds: {', '.join(FORMATS)}"
            )
        self.files = self._of_one_ending(readable)
        self.format = cast("str", format_of(self.files[0]))
        self.arguments = arguments

    def read(self, split: str, *, streaming: bool = False) -> Iterable[Row]:
        """Rows of a split, in the syntax of `datasets`.

        Raises:
            XLMError: If the files have no such split.
        """
        splits = self._splits()
        for name in _names(split):
            if _same(name, splits) is None and (files := self._named(name)):
                # A name that `datasets` rejects may still be that of a file or of a folder.
                splits[name] = files
        wanted = self.arguments.get("path")
        others = {} if wanted in FORMATS.values() and wanted != self.format else self.arguments
        how = {name: value for name, value in others.items() if name not in ABOUT_THE_HUB}
        return _read(splits, self.format, split, how, streaming, f"source={self.path}")

    def _of_one_ending(self, files: list[Path]) -> list[Path]:
        """The files with the ending of the chosen format."""
        data = [file for file in files if not BESIDE_DATA.fullmatch(file.name)] or files
        by_ending: dict[str, list[Path]] = defaultdict(list)
        for file in data:
            by_ending[file.suffix.lower()].append(file)
        if len(by_ending) > 1:
            named = {ending: those for ending, those in by_ending.items() if any(map(self._split_of, those))}
            by_ending = named if len(named) == 1 else by_ending
        if len(by_ending) > 1:
            found = " and ".join(f"{len(those)} {ending}" for ending, those in sorted(by_ending.items()))
            choices = " or ".join(f"\"source='{self.path}/**/*{ending}'\"" for ending in sorted(by_ending))
            raise XLMError(
                f"source={self.path}: holds files of several kinds ({found}). Choose one: {choices}"
            )
        [chosen] = by_ending.values()
        return chosen

    def _splits(self) -> Splits:
        """The files of each split: from the task or the folder's card, else by their names."""
        if not self.path.is_dir():
            return {"train": self.files}
        for data_files in (self.arguments.get("data_files"), self._card_data_files()):
            if not is_remote(data_files) and (held := self._holds(data_files)):
                return held
        splits: Splits = defaultdict(list)
        for file in self.files:
            if name := self._split_of(file):
                splits[name].append(file)
        return dict(splits) or {"train": self.files}

    def _card_data_files(self) -> object:
        """The files of the requested configuration, from the card of a copy of a Hub repository."""
        card = self.path / "README.md"
        found = re.match(r"(?s)---\n(.*?\n)---", card.read_text(encoding="utf-8")) if card.is_file() else None
        content = yaml.safe_load(found[1]) if found else None
        configs = content.get("configs", []) if isinstance(content, dict) else []
        name = self.arguments.get("name")
        for config in configs:
            if len(configs) == 1 or config.get("config_name") == (name or "default"):
                return config.get("data_files")
        return None

    def _holds(self, data_files: Any) -> Splits | None:
        """The files of each split, if the folder has them all."""
        splits: Splits = {}
        for name, patterns in sanitize_patterns(data_files).items():
            found = [file for pattern in patterns for file in existing_files(str(pattern), self.path)]
            splits[name] = [file for file in found if format_of(file) == self.format]
        return splits if all(splits.values()) else None

    def _split_of(self, file: Path) -> str | None:
        """The split in the name of a file, or else of one of its folders."""
        if not self.path.is_dir():
            return None
        *folders, name = file.relative_to(self.path).parts
        if sharded := re.match(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}", name):
            return _same(sharded[1], (names[0] for names in SAME_SPLIT)) or sharded[1]
        for part in (name, *reversed(folders)):
            for word in re.split(r"[-._ 0-9]+", part):
                for names in SAME_SPLIT:
                    if word in names:
                        return names[0]
        return None

    def _named(self, split: str) -> list[Path]:
        """Files named after a split, or in a folder named after one."""
        if not self.path.is_dir():
            return []
        pattern = rf"{re.escape(split)}([.-]|$)"
        return [file for file in self.files if re.match(pattern, file.relative_to(self.path).parts[0])]


def _read(
    splits: Splits, kind: str, split: str, arguments: Mapping[str, Any], streaming: bool, where: str
) -> Iterable[Row]:
    wanted: Splits = {}
    for name in _names(split):
        found = _same(name, splits)
        if found is None:
            raise XLMError(
                f"{where}: there is no split {name!r}, only {', '.join(splits)}. Name the files or folders "
                "after the splits, or choose others: task.splits.<stage>=train[:90%]"
            )
        wanted[found] = splits[found]
        split = re.sub(rf"\b{re.escape(name)}\b", found, split)
    try:
        rows = read_files(wanted, kind=kind, split=split, arguments=arguments, streaming=streaming)
    except XLMError as error:
        raise XLMError(f"{where}: {error}") from error
    return cast("Iterable[Row]", rows)


def _names(split: str) -> list[str]:
    """The names of the splits in an expression such as ``train[:90%]+test``."""
    return list(dict.fromkeys(re.findall(r"[A-Za-z_][\w.]*", re.sub(r"\[.*?\]", "", split))))


def _same(name: str, available: Iterable[str]) -> str | None:
    """The split of this name, or of another name for the same."""
    available = list(available)
    if name in available:
        return name
    others = next((names for names in SAME_SPLIT if name in names), ())
    return next((other for other in available if other in others), None)
