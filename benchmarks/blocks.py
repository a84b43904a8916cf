"""Block diffusion beside masked diffusion on a CPU: a training step, and sampling with and without the cache.

    OMP_NUM_THREADS=1 uv run python benchmarks/blocks.py

Rows of 512 tokens in blocks of 16, untrained networks of the same sizes. A step is forward and backward pass
of the losses; texts are written most confident cell first, ``steps`` evaluations for each block. One thread
and the CPU seconds of the process, both in turns, the median of the turns. Then the seconds that products of
matrices and attention alone take: their ratio is what a sampler with nothing else could reach.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from gpu_families import MASK, PAD, SPECIAL, Size, mean_loss, text_parts, texts
from torch.overrides import TorchFunctionMode
from training import LENGTH, cpu_seconds
from training import SIZES as SIZES_OF_TRAINING

from xlm.modules import LogLinear
from xlm.modules.samplers import compose
from xlm_bd3lm import BD3LMCollator, BD3LMDiT, BD3LMLoss, BD3LMPredictor, BD3LMPromptCollator

BLOCK = 16
SIZES = SIZES_OF_TRAINING | {
    "wide": (Size(d_model=512, num_layers=6, num_heads=8, vocab_size=8_000), 1),
    "published": (Size(d_model=768, num_layers=12, num_heads=12, vocab_size=30_522), 1),
}
"""Networks and the rows of a training step."""
IDS: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "eos_id": None}


def medians(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, in turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def measure_steps(size_name: str, repeats: int) -> dict[str, float]:
    """Seconds of a training step of either family on the same rows."""
    size, rows = SIZES[size_name]
    examples = texts(0, rows, LENGTH, size.vocab_size)
    mdlm = text_parts("mdlm", size, LENGTH)
    batch = mdlm.collate(examples)
    model, loss = BD3LMDiT(**size.arguments()), BD3LMLoss(**IDS, suppressed_ids=SPECIAL)
    blocks = BD3LMCollator(**IDS, bos_id=None, block_length=BLOCK)(examples)

    def step() -> None:
        model.zero_grad()
        output = loss(model, blocks)
        (output.loss_sum / output.loss_count).backward()

    def step_of_mdlm() -> None:
        mdlm.model.zero_grad()
        mean_loss(mdlm, mdlm.model, batch).backward()

    return medians({"mdlm": step_of_mdlm, "bd3lm": step}, repeats)


BY_ONEDNN = torch.ops.mkldnn._linear_pointwise
PRODUCTS = (F.linear, F.scaled_dot_product_attention, BY_ONEDNN, BY_ONEDNN.default)


class Products(TorchFunctionMode):
    """Adds up the CPU seconds of linear layers and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, with a clock beside it."""
        start = time.process_time()
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.seconds += time.process_time() - start
        return result


def products_of(work: Callable[[], object]) -> float:
    """CPU seconds of the products and attention of some work."""
    with Products() as products:
        work()
    return products.seconds


def measure_cache(
    size_name: str, steps: int, repeats: int, rows: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of texts of 512 tokens written together, with and without the cache, and of products alone."""
    size, _ = SIZES[size_name]
    model = BD3LMDiT(**size.arguments()).eval()
    collate = BD3LMPromptCollator(**IDS, bos_id=None, block_length=BLOCK, default_length=LENGTH)
    prompts = collate([{"seed": row} for row in range(rows)])

    def write(predictor: BD3LMPredictor) -> Callable[[], object]:
        return lambda: predictor(model, prompts, torch.arange(1, rows + 1))

    sampler = compose("confidence", num_steps=steps)
    options: dict[str, Any] = {**IDS, "schedule": LogLinear(), "sampler": sampler, "block_length": BLOCK}
    works = {
        name: write(BD3LMPredictor(**options, suppressed_ids=SPECIAL, cache=name == "cache"))
        for name in ("cache", "no cache")
    }
    return medians(works, repeats), {name: products_of(work) for name, work in works.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="wide")
    parser.add_argument("--steps", type=int, default=4, help="evaluations of a block")
    parser.add_argument("--texts", type=int, default=1, help="written together")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = measure_steps(options.size, options.repeats)
    ratio = step["bd3lm"] / step["mdlm"]
    print(f"step        mdlm {step['mdlm']:.3f} s   bd3lm {step['bd3lm']:.3f} s   {ratio:.2f}")
    for name, seconds in zip(
        (f"{options.texts} x {LENGTH} tokens", "products alone"),
        measure_cache(options.size, options.steps, options.repeats, options.texts),
        strict=True,
    ):
        kept, anew = seconds["cache"], seconds["no cache"]
        print(f"{name}  cache {kept:.2f} s   no cache {anew:.2f} s   {anew / kept:.1f}")


if __name__ == "__main__":
    main()
