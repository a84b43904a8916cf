"""The star graphs of the papers on one GPU: exact match of each family after some minutes of training.

    python benchmarks/gpu_star.py --minutes 5 --out FOLDER --checkpoints OTHER

Bare loops over graphs that worker processes generate on demand, without those of the tasks' validation and
test splits. Several trainings share the GPU, since small networks leave most of it idle. They start in the
order of ORDER, each for its fraction of the time or until it makes no more mistakes. A later call with the
same folder of checkpoints continues from the weights (with a new optimizer and a warm-up); `--only` selects
trainings. FOLDER receives gpu_star.jsonl, a line per validation and test, and gpu_star.md. `--small` tests it
on a CPU.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import table

HERE = Path(__file__).parent
PAPERS = {
    ("easy", "ilm"): 1.0,
    ("medium", "ilm"): 1.0,
    ("hard", "ilm"): 0.991,
    ("easy", "arlm"): 0.323,
    ("medium", "arlm"): 0.75,
    ("hard", "arlm"): 0.23,
    ("medium", "mdlm"): 0.365,
    ("hard", "mdlm"): 0.21,
    ("medium", "flexmdm"): 0.896,
    ("hard", "flexmdm"): 0.06,
}
"""Exact match in the papers (arXiv:2505.05755, table 1; arXiv:2509.01025)."""
ORDER = {
    ("easy", "ilm"): 2.0,
    ("medium", "ilm"): 2.0,
    ("hard", "ilm"): 4.0,
    ("medium", "flexmdm"): 2.0,
    ("medium", "mdlm"): 1.0,
    ("easy", "arlm"): 1.0,
    ("hard", "mdlm"): 2.0,
    ("medium", "arlm"): 1.0,
    ("hard", "flexmdm"): 2.0,
    ("hard", "arlm"): 1.0,
    ("easy", "mdlm"): 1.0,
    ("easy", "flexmdm"): 1.0,
}
"""Levels and families in the order in which they begin, with their shares of the time."""
LAST_WORDS_SECONDS = 25.0
"""Seconds that a training may take for its test after its time is over."""


@dataclass
class Visit:
    """Running trainings, the queue, and the results."""

    options: argparse.Namespace
    deadline: float
    waiting: list[tuple[str, str]]
    promised: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    """When each running training ends."""
    found: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, result: dict[str, Any]) -> None:
        """Add a result, also to the files."""
        with self.lock:
            self.found.append(result)
            line = json.dumps(result)
            print(line, flush=True)
            with (self.options.out / "gpu_star.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            (self.options.out / "gpu_star.md").write_text(report(self.found), encoding="utf-8")

    def next(self) -> tuple[tuple[str, str], float] | None:
        """The next training and when it is to end."""
        with self.lock:
            now = time.monotonic()
            if not self.waiting or self.deadline - now < self.options.least:
                return None
            left = (self.deadline - now) * self.options.parallel - sum(
                max(end - now, 0.0) for end in self.promised.values()
            )
            shares = sum(ORDER.get(one, 1.0) for one in self.waiting)
            task = self.waiting.pop(0)
            seconds = max(left * ORDER.get(task, 1.0) / shares, self.options.least)
            end = min(now + seconds, self.deadline)
            self.promised[task] = end
            return task, end

    def work(self) -> None:
        """Run trainings until the queue is empty or the time is over."""
        while (chosen := self.next()) is not None:
            task, end = chosen
            self.train(*task, end)
            with self.lock:
                del self.promised[task]

    def train(self, level: str, family: str, end: float) -> None:
        """Run one training to its end."""
        command = [
            *(sys.executable, str(HERE / "gpu_star_train.py"), level, family),
            *("--until", str(end), "--checkpoints", str(self.options.checkpoints)),
            *(["--small"] if self.options.small else []),
            *("--workers", str(self.options.workers)),
        ]
        log = self.options.out / f"star-{level}-{family}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        patience = 100.0 if self.options.small else LAST_WORDS_SECONDS
        timer = threading.Timer(end - time.monotonic() + patience, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.tell({"level": level, "family": family, **json.loads(line)})
        timer.cancel()
        process.stdout.close()
        if code := process.wait():
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            words = f"exit code {code}: {lines[-1] if lines else 'no output'}"
            self.tell({"level": level, "family": family, "error": words[:400]})


def report(found: Sequence[dict[str, Any]]) -> str:
    """A row for each training: its last test, or its last validation, or its error."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found:
        last[row["level"], row["family"]] = {**last.get((row["level"], row["family"]), {}), **row}

    def percent(key: str) -> Any:
        return lambda row: f"{100 * row[key]:.1f}" if row.get(key) is not None else "-"

    rows = [{**row, "paper": PAPERS.get(key)} for key, row in last.items()]
    columns: dict[str, Any] = {
        "level": lambda row: row["level"],
        "family": lambda row: row["family"],
        "exact match, test": percent("test"),
        "validation": percent("validation"),
        "in the paper": percent("paper"),
        "steps": lambda row: str(row.get("step", "-")),
        "million rows": lambda row: f"{row['rows'] / 1e6:.2f}" if "rows" in row else "-",
        "seconds": lambda row: f"{row['seconds']:.0f}" if "seconds" in row else "-",
        "evaluations a row": lambda row: f"{row['evaluations']:.1f}" if "evaluations" in row else "-",
        "error": lambda row: row.get("error", ""),
    }
    return table(rows, columns) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train side by side until the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--parallel", type=int, default=3, help="trainings at a time")
    parser.add_argument("--workers", type=int, default=4, help="processes that make graphs, of each training")
    parser.add_argument("--least", type=float, default=25.0, help="seconds below which no training begins")
    parser.add_argument("--only", nargs="+", metavar="LEVEL_FAMILY", help="say hard_ilm medium_mdlm")
    parser.add_argument("--small", action="store_true", help="tiny networks and tests on the CPU")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes - (0.0 if options.small else LAST_WORDS_SECONDS)
    for folder in (options.out, options.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    chosen = [tuple(name.split("_")) for name in options.only] if options.only else list(ORDER)
    visit = Visit(options, deadline, [(level, family) for level, family in chosen])
    threads = [threading.Thread(target=visit.work) for _ in range(options.parallel)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    print(report(visit.found))


if __name__ == "__main__":
    main()
