"""Benchmarks of the families on a GPU, in one command of at most 8 minutes.

    python benchmarks/gpu.py --out FOLDER            # needs torch and the families, for its jobs xlm-core
    python benchmarks/gpu.py --out FOLDER --small    # a test on a CPU with tiny networks

Width 768, 12 blocks, rows of 1024 tokens, a vocabulary of 50,257. Results are written as
soon as they are available: as lines of FOLDER/gpu.jsonl, and as tables in FOLDER/gpu.md. A part that fails or
exceeds its time is a row with the error.

The parts, each a process of its own: the device's rates; each family's training steps and generation; the
same steps compiled; and jobs of `xlm` (resumed, with FSDP2, in 16-mixed), which are not timed and run while
networks compile. Processes prepare in parallel, and then measure one after the other.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEFAULT = ("mdlm", "ilm", "did", "mlm", "flexmdm", "arlm", "bd3lm")
"""As many as fit into the time."""
NAMES = (*DEFAULT, "bd3lm_flex", "udlm", "editflow")
READY_SECONDS = {"device": 120.0, "plain": 120.0, "compiled": 240.0}
"""From the start of a part until it is ready to measure."""
TURN_SECONDS = {"device": 30.0, "plain": 60.0, "compiled": 75.0}
JOBS_SECONDS = 150.0
SMALL_PATIENCE = 10.0
"""Factor of the time limits for --small, since a CPU may be shared."""


@dataclass
class Results:
    """The results so far, also in files."""

    folder: Path
    found: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, result: dict[str, Any]) -> None:
        """Add a result."""
        with self.lock:
            self.found.append(result)
            line = json.dumps(result)
            print(line, flush=True)
            with (self.folder / "gpu.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            (self.folder / "gpu.md").write_text(report(self.found), encoding="utf-8")


class Part:
    """A process that runs one part of gpu_parts.py."""

    def __init__(self, part: str, family: str, arguments: Sequence[str], folder: Path) -> None:
        self.part = part
        self.name = f"{part} {family}".strip()
        self.log = folder / f"{part}-{family or 'all'}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "gpu_parts.py", part, family, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)

    def follow(self, seconds: float, tell: Callable[[dict[str, Any]], None]) -> bool:
        """Report results until the part is ready (True) or ends (False); stop it at the time limit."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                self.process.kill()
                self.process.wait()
                tell({"what": self.name, "error": f"not done after {seconds:.0f} s"})
                return False
            if line is None:
                if self.process.wait() != 0:
                    tell({"what": self.name, "error": self._last_words()})
                return False
            if line == "ready":
                return True
            if line.startswith("{"):
                tell(json.loads(line))

    def measure(self, seconds: float, tell: Callable[[dict[str, Any]], None]) -> None:
        """Let a part that is ready measure."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended, which follow() reports
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        self.follow(seconds, tell)

    def close(self) -> None:
        """End the process, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {self.process.returncode}: {lines[-1] if lines else 'no output'}"[:400]


def together(
    part: str,
    families: Sequence[str],
    arguments: Sequence[str],
    results: Results,
    deadline: float,
    patience: float,
    before_turns: Callable[[], None] = lambda: None,
) -> None:
    """Run a part for several families: all get ready at once, then one measures after the other.

    What else uses the device has ended when ``before_turns`` returns.
    """
    started = time.monotonic()
    parts = [Part(part, family, arguments, results.folder) for family in families]
    ready: list[Part] = []
    try:
        for one in parts:
            left = min(started + patience * READY_SECONDS[part], deadline) - time.monotonic()
            if one.follow(max(left, 1.0), results.tell):
                ready.append(one)
        before_turns()
        for one in ready:
            left = min(patience * TURN_SECONDS[part], deadline - time.monotonic())
            one.measure(max(left, 1.0), results.tell)
    finally:
        for one in parts:
            one.close()
    results.tell({"what": "time", "part": part, "seconds": time.monotonic() - started})


def jobs(small: bool, results: Results, deadline: float, patience: float) -> None:
    """Run the jobs of the harness, in a process of its own like the other parts."""
    started = time.monotonic()
    seconds = max(min(patience * JOBS_SECONDS, deadline - started), 1.0)
    log = results.folder / "jobs.log"
    command = [sys.executable, HERE / "gpu_jobs.py", "--seconds", str(seconds - 2), *(["--small"] * small)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    timer = threading.Timer(
        seconds, os.killpg, (process.pid, signal.SIGKILL)
    )  # with the jobs that it started
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            results.tell(json.loads(line))
    timer.cancel()
    process.stdout.close()
    if code := process.wait():
        lines = log.read_text(errors="replace").splitlines()
        results.tell({"what": "jobs", "error": f"exit code {code}: {lines[-1] if lines else ''}"[:400]})
    results.tell({"what": "time", "part": "jobs", "seconds": time.monotonic() - started})


# ---- Markdown tables of the results -----------------------------------------------------------------

Row = dict[str, Any]


def report(found: Sequence[Row]) -> str:
    """All tables for which there is a row; errors first."""
    device = next((row for row in found if row["what"] == "device"), None)
    parts = [_device(device)] if device else []
    peak = device["bf16_flops"] if device else None
    tables: list[tuple[str, str, dict[str, Callable[[Row], str]]]] = [
        ("Failed", "", {"what": _plain("what"), "error": _error}),
        ("Training", "training", _training(peak)),
        ("Loss and gradient beside the CPU's float32", "equal to the CPU", _EQUAL),
        ("Synchronisations with the device in a step", "waits in a step", _WAITS),
        ("Kernels", "kernels", _KERNELS),
        ("Compiling", "compiling", {"family": _plain("family"), "seconds": lambda r: f"{r['seconds']:.0f}"}),
        ("Generation, untrained networks", "generation", _GENERATION),
        ("Jobs", "job", {"job": _plain("job"), "result": _plain("result")}),
        ("Time", "time", {"part": _plain("part"), "seconds": lambda r: f"{r['seconds']:.0f}"}),
    ]
    for title, what, columns in tables:
        rows = [
            row
            for row in found
            if ("error" in row if what == "" else row["what"] == what and "error" not in row)
        ]
        if rows:
            parts.append(f"### {title}\n\n{table(rows, columns)}")
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    """A Markdown table."""
    lines = [
        list(columns),
        ["---"] * len(columns),
        *([cell(row) for cell in columns.values()] for row in rows),
    ]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in lines)


def _device(row: Row) -> str:
    return (
        f"{row['name']}, torch {row['torch']}: bfloat16 products {row['bf16_flops'] / 1e12:.0f} TFLOP/s, "
        f"copies {row['copy_bytes'] / 1e12:.2f} TB/s"
    )


def _error(row: Row) -> str:
    return f"{row['error']} {' '.join(row.get('at', []))}".strip()


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])


def _training(peak: float | None) -> dict[str, Callable[[Row], str]]:
    return {
        "family": _plain("family"),
        "compiled": lambda r: "yes" if r["compiled"] else "no",
        "rows": _plain("rows"),
        "ms a step": lambda r: f"{r['milliseconds']:.0f}",
        "tokens a second": lambda r: f"{r['tokens_per_second']:,.0f}",
        "TFLOP/s": lambda r: f"{r['flops_per_second'] / 1e12:.0f}",
        "share of the products' rate": lambda r: f"{r['flops_per_second'] / peak:.2f}" if peak else "-",
        "peak memory": lambda r: f"{r['peak_memory'] / 2**30:.1f} GiB" if r["peak_memory"] else "-",
    }


def _difference(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.1e}"


_EQUAL: dict[str, Callable[[Row], str]] = {
    "family": _plain("family"),
    "loss": lambda r: f"{r['loss']:.4f}",
    "float32, loss": _difference("float32_loss_difference"),
    "gradient": _difference("float32_gradient_difference"),
    "bfloat16, loss": _difference("bfloat16_loss_difference"),
    "its gradient": _difference("bfloat16_gradient_difference"),
}
_WAITS: dict[str, Callable[[Row], str]] = {"family": _plain("family"), "waits": _plain("waits")}
_KERNELS: dict[str, Callable[[Row], str]] = {
    "family": _plain("family"),
    "compiled": lambda r: "yes" if r["compiled"] else "no",
    "attention": lambda r: ", ".join(r["attention"]),
    "longest, share of the kernels' time": lambda r: ", ".join(f"{k} {v}" for k, v in r["longest"].items()),
}
_GENERATION: dict[str, Callable[[Row], str]] = {
    "family": _plain("family"),
    "rows": _plain("rows"),
    "tokens": _plain("tokens"),
    "evaluations a row": lambda r: f"{r['evaluations']:.1f}",
    "seconds": lambda r: f"{r['seconds']:.2f}",
    "tokens a second": lambda r: f"{r['tokens_per_second']:,.0f}",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl and gpu.md")
    parser.add_argument("--small", action="store_true", help="tiny networks on the CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to stop, whatever is missing")
    parser.add_argument("--families", nargs="+", choices=NAMES, default=DEFAULT)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("device", "plain", "compiled", "jobs"),
        default=("device", "plain", "compiled", "jobs"),
    )
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes - 5
    patience = SMALL_PATIENCE if options.small else 1.0
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # of each of the processes that compile
    results = Results(options.out)
    device = ["--device", "cpu", "--small"] if options.small else ["--device", "cuda"]
    beside = threading.Thread(target=jobs, args=(options.small, results, deadline, patience))
    for part in ("device", "plain", "compiled"):
        if part == "compiled" and "jobs" in options.parts:
            beside.start()
        if part in options.parts:
            families = [""] if part == "device" else options.families
            wait = beside.join if beside.is_alive() else lambda: None
            together(part, families, device, results, deadline, patience, wait)
    if beside.is_alive():
        beside.join()
    print((options.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
