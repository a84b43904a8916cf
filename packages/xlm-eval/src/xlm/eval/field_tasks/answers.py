"""The answers of a job so far, in a file, so that an interrupted one continues without repeating requests.

Batches depend on the requests only, so a continued job computes the remaining ones as an uninterrupted one.
The harness's own cache has neither the document of a request, which the noise depends on, nor the weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from xlm.core.evaluation.progress import is_being_written

ANSWERS = ".answers.jsonl"


class Answers:
    """The answer of each batch of requests, computed once.

    Args:
        folder: Folder of the job.
        weights: Fingerprint of the weights that answer; a file with answers of others is replaced.
    """

    def __init__(self, folder: Path, weights: str) -> None:
        self.path = folder / ANSWERS
        self.known: dict[str, Any] = {}
        """Answers of earlier batches, by the hash of their requests."""
        lines = _lines(self.path, weights)
        for line in lines[1:]:
            self.known.update(json.loads(line))
        # Without the line that a killed process has begun.
        self.path.write_bytes(b"".join(lines) or _line({"weights": weights}))

    def of(self, requests: object, answer: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The answer to some requests, computed unless it is known.

        Args:
            requests: All that the answer depends on beside the weights and the config, as JSON has it.
            answer: Computes it, as JSON has it.
        """
        key = hashlib.sha256(json.dumps(requests).encode()).hexdigest()
        if key not in self.known:
            self.known[key] = answer()
            with self.path.open("ab") as file:
                file.write(_line({key: self.known[key]}))
        return cast("Mapping[str, Any]", self.known[key])

    def remove(self) -> None:
        """Remove the file, since the job has its results."""
        self.path.unlink()


def has_answers(folder: Path, weights: str) -> bool:
    """Whether a folder has answers of these weights to continue from, and no process is adding to them."""
    return bool(_lines(folder / ANSWERS, weights)) and not is_being_written(folder)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _lines(path: Path, weights: str) -> list[bytes]:
    """The whole lines of a file of these weights; none of another."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return whole if whole and json.loads(whole[0]) == {"weights": weights} else []
