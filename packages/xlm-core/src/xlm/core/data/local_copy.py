"""Files on this machine instead of a task's own source: ``source=path/to/files``.

They have the schema of the source, and one of these layouts: a single file or a pattern; a folder with a
file or a sub-folder named after each split; a copy of the repository on the Hub. `datasets` reads them all.
"""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import datasets

from xlm.core.config.errors import XLMError
from xlm.core.protocols import Row

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
SAME_SPLIT = ({"train", "training"}, {"val", "valid", "validation", "dev"}, {"test", "testing", "eval"})
ABOUT_THE_HUB = {"path", "name", "revision", "token", "data_files", "data_dir", "split", "streaming"}


def read_local_copy(
    *, path: str, arguments: Mapping[str, Any], split: str, streaming: bool = False
) -> Iterable[Row]:
    """A source that reads local files; see `LocalCopy` for the arguments."""
    return LocalCopy(Path(path), arguments).read(split, streaming=streaming)


class LocalCopy:
    """Local files of a data set.

    Args:
        path: A folder, a file, or a pattern of files.
        arguments: What ``datasets.load_dataset`` would be called with. Kept is what says how files are
            read (``sample_by``, ``sep``, ``data_files`` that lie in the folder, ...), not where they are.

    Raises:
        XLMError: When there are no such files, or none that can be read.
    """

    def __init__(self, path: Path, arguments: Mapping[str, Any]) -> None:
        self.path = path.expanduser()
        files = self._files()
        formats = Counter(FORMATS[file.suffix] for file in files if file.suffix in FORMATS)
        if not formats:
            raise XLMError(
                f"source={path}: {'no files are there' if not files else 'none of the files is readable'}; "
                f"allowed are a folder or files of these kinds: {', '.join(FORMATS)}"
            )
        self.format = formats.most_common(1)[0][0]
        self.files = [str(file) for file in files if FORMATS.get(file.suffix) == self.format]
        self.arguments = arguments

    def read(self, split: str, *, streaming: bool = False) -> Iterable[Row]:
        """Rows of a split, in the syntax of `datasets`.

        Raises:
            XLMError: When the files have no such split.
        """
        loading = self._loading()
        available = datasets.get_dataset_split_names(**loading)
        for name in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", re.sub(r"\[.*?\]", "", split))):
            found = _same(name, available)
            if found is None:
                # A name that means nothing to `datasets` may still be that of a file or of a folder.
                if files := self._named(name):
                    return self._load({"path": self.format, "data_files": {name: files}}, split, streaming)
                raise XLMError(
                    f"source={self.path}: there is no split {name!r}, only {', '.join(available)}. Name the "
                    f"files or folders after the splits, or choose others: task.splits.<stage>=train[:90%]"
                )
            split = re.sub(rf"\b{name}\b", found, split)
        return self._load(loading, split, streaming)

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            return sorted(file for file in self.path.rglob("*") if file.is_file())
        return sorted(map(Path, glob.glob(str(self.path))))  # noqa: PTH207  # Path.glob refuses absolute patterns

    def _loading(self) -> dict[str, Any]:
        """Arguments with which `datasets` finds the splits by itself."""
        if not self.path.is_dir():
            return {"path": self.format, "data_files": {"train": self.files}}
        loading: dict[str, Any] = {"path": str(self.path)}
        if (data_files := self.arguments.get("data_files")) and self._holds(data_files):
            loading["data_files"] = data_files
        if (self.path / "README.md").is_file() and "name" in self.arguments:
            loading["name"] = self.arguments["name"]
        return loading

    def _load(self, loading: dict[str, Any], split: str, streaming: bool) -> Iterable[Row]:
        wanted = self.arguments.get("path")
        others = {} if wanted in FORMATS.values() and wanted != self.format else self.arguments
        how = {name: value for name, value in others.items() if name not in ABOUT_THE_HUB}
        return cast(
            "Iterable[Row]", datasets.load_dataset(**(how | loading), split=split, streaming=streaming)
        )

    def _holds(self, data_files: object) -> bool:
        if isinstance(data_files, str):
            return any(self.path.glob(data_files)) if "://" not in data_files else False
        if isinstance(data_files, Mapping):
            return all(map(self._holds, cast("Mapping[str, object]", data_files).values()))
        return all(map(self._holds, cast("list[object]", data_files)))

    def _named(self, split: str) -> list[str]:
        """Files of the folder that are called after a split or lie in a folder that is."""
        if not self.path.is_dir():
            return []
        found = [
            file
            for file in map(Path, self.files)
            if re.match(rf"{re.escape(split)}([.-]|$)", file.relative_to(self.path).parts[0])
        ]
        return [str(file) for file in found]


def _same(name: str, available: Iterable[str]) -> str | None:
    """The split of this name, or of another name for the same."""
    available = list(available)
    if name in available:
        return name
    others = next((names for names in SAME_SPLIT if name in names), set[str]())
    return next((other for other in available if other in others), None)
