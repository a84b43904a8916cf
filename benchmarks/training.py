"""Time and memory of one forward and backward pass on a CPU, beside the rate of its matrix products.

    OMP_NUM_THREADS=1 uv run python benchmarks/training.py
    OMP_NUM_THREADS=1 uv run python benchmarks/training.py --size large --families mdlm ilm udlm

One thread and the CPU seconds of the process, so that what else runs on the machine matters little. The share
is the number of operations that a step needs (see gpu_families.training_flops; what is computed twice or for
padding counts nothing) over its time and over the rate of a float32 product of two matrices of 1024 x 1024,
taken in turns with the steps. Memory is the highest resident set during the steps above the one before them.
Each family has a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from gpu_families import NAMES, TEXT_NAMES, Size, mean_loss, text_parts, texts, training_flops

SIZES = {
    "tiny": (Size(d_model=16, num_layers=1, num_heads=2, vocab_size=99), 1),
    "short": (Size(d_model=128, num_layers=2, num_heads=4, vocab_size=8_000), 2),
    "small": (Size(d_model=256, num_layers=4, num_heads=4, vocab_size=30_522), 4),
    "large": (Size(d_model=512, num_layers=8, num_heads=8, vocab_size=30_522), 8),
}
LENGTH = 512


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


MATRIX = torch.randn(1024, 1024)
PRODUCT = torch.empty_like(MATRIX)


def product_seconds() -> float:
    """CPU seconds of a float32 product of two matrices of 1024 x 1024."""
    return cpu_seconds(lambda: [torch.mm(MATRIX, MATRIX, out=PRODUCT) for _ in range(4)]) / 4


def resident(name: str) -> int:
    """Bytes of memory: VmRSS now, VmHWM at the highest."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def measure(family: str, size_name: str, repeats: int) -> dict[str, float]:
    """Median seconds of a pass, its share of the rate of products, and its memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size, rows = SIZES[size_name]
    parts = text_parts(family, size, LENGTH)
    batch = parts.collate(texts(0, rows, LENGTH, size.vocab_size))

    def step() -> None:
        parts.model.zero_grad()
        mean_loss(parts, parts.model, batch).backward()

    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set so far is forgotten
    before = resident("VmRSS")
    step()
    memory = resident("VmHWM") - before
    seconds, rates = [], []
    for _ in range(repeats):
        rates.append(2 * 1024**3 / product_seconds())
        seconds.append(cpu_seconds(step))
    pass_seconds, rate = statistics.median(seconds), statistics.median(rates)
    return {
        "seconds": pass_seconds,
        "products": pass_seconds * rate / (2 * 1024**3),
        "share": training_flops(family, parts.model, batch) / pass_seconds / rate,
        "gigaflops": rate / 1e9,
        "megabytes": memory / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--families", nargs="+", choices=TEXT_NAMES, default=NAMES)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    size, rows = SIZES[options.size]
    print(f"{size.num_layers} blocks of {size.d_model}, {rows} x {LENGTH} tokens, {size.vocab_size:,} ids")
    print(f"{'family':<9}{'CPU s':>7}{'share':>7}{'product':>16}{'memory':>10}")
    context = multiprocessing.get_context("spawn")
    for family in options.families:
        with context.Pool(1) as pool:
            found = pool.apply(measure, (family, options.size, options.repeats))
        print(
            f"{family:<9}{found['seconds']:>7.2f}{found['share']:>7.2f}"
            f"{found['gigaflops']:>9.0f} GFLOP/s{found['megabytes']:>7.0f} MB"
        )


if __name__ == "__main__":
    main()
