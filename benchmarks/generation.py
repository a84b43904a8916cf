"""CPU time of generation, and how much of it the network takes.

    OMP_NUM_THREADS=1 uv run python benchmarks/generation.py text
    OMP_NUM_THREADS=1 uv run python benchmarks/generation.py star

The networks are untrained, and limits make the number of tokens that of trained ones.

text: 8 rows of 128 tokens from nothing with the small network of training.py: ilm by 128 insertions (it never
stops), mdlm and mlm in 128 steps, arlm until 128 tokens.
star: the prompts of star_easy, 64 rows, with the experiment's sampler at width 128 and 4 layers; 5 tokens a
row (ilm, arlm) or the experiment's 8 cells; flexmdm has a budget of 8, of which its network uses 1.8.

``trunk`` is the fraction of the time in the network without its head. ``operations`` are those of all matrix
products of the run, attention included, as torch counts them in another run; ``share`` is their rate over
that of a float32 product of two matrices of 1024 x 1024, taken before and after.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from gpu_families import NAMES, Size, text_parts, texts
from steps import assembled_star
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import SIZES, cpu_seconds, product_seconds

ROWS, TOKENS = 8, 128
STAR_TOKENS = 5
STAR_ROWS = 64


def text_run(family: str, size: Size, tokens: int) -> tuple[nn.Module, Callable[[], Any]]:
    """A network, and the generation of some rows from nothing."""
    torch.manual_seed(0)
    parts = text_parts(family, size, tokens)
    predict = parts.predict
    if family == "ilm":
        from xlm_ilm import ILMPredictor

        # A probability of exactly 1 does not come up.
        predict = ILMPredictor(pad_id=0, suppressed_ids=range(7), stop_threshold=1.0)
    if family == "arlm":
        from xlm_arlm import ARLMPredictor

        predict = ARLMPredictor(pad_id=0, eos_id=None, suppressed_ids=range(7))
    examples = texts(0, ROWS, tokens, size.vocab_size)
    batch = parts.collate_prompts([{"seed": row["seed"], "place": row["place"]} for row in examples])
    seeds = torch.tensor([row["seed"] for row in examples])
    model = parts.model.eval()
    return model, lambda: predict(model, batch, seeds)


def star_run(family: str, folder: Path) -> tuple[nn.Module, Callable[[], Any]]:
    """A network, and the generation of a batch of paths."""
    limit = [f"++predictor.max_new_tokens={STAR_TOKENS}"] if family in ("arlm", "ilm") else []
    if family == "ilm":
        limit.append("++predictor.stop_threshold=1.0")
    harness, datamodule = assembled_star(family, folder, *limit)
    rows = datamodule.first_examples("val", "prediction", STAR_ROWS)
    loaded = datamodule.collate("val", "prediction")(rows)
    model, predict = harness.model.eval(), harness.slots.predictor
    return model, lambda: predict(model, loaded.batch, loaded.seeds)


class Trunk:
    """CPU seconds in the network's trunk, between calls of hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds = self.start = 0.0
        trunk = next(part for name, part in model.named_children() if name in ("transformer", "trunk"))
        trunk.register_forward_pre_hook(self.before)
        trunk.register_forward_hook(self.after)

    def before(self, *_: object) -> None:
        """A call begins."""
        self.start = process_time()

    def after(self, *_: object) -> None:
        """A call ends."""
        self.seconds += process_time() - self.start


def linear_operations(hidden: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Operations of a linear layer of oneDNN, by the shapes of its arguments."""
    return 2 * math.prod(hidden) * weight[0]


def measure(name: str, model: nn.Module, generate: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Print a row: seconds, fraction of the trunk, evaluations, share of the rate of products."""
    rules = {torch.ops.mkldnn._linear_pointwise: linear_operations}
    with FlopCounterMode(display=False, custom_mapping=rules) as counter, sdpa_kernel(SDPBackend.MATH):
        prediction = generate()
    operations = counter.get_total_flops()
    trunk = Trunk(model)
    products, seconds = [product_seconds()], []
    for _ in range(repeats):
        seconds.append(cpu_seconds(generate))
        products.append(product_seconds())
    product, own = sorted(products)[len(products) // 2], sorted(seconds)[len(seconds) // 2]
    limit = operations / (2 * 1024**3) * product
    rows, tokens = len(prediction.lengths), float(prediction.lengths.double().mean())
    print(
        f"{name:<9}{own:>7.2f} s{rows / own:>8.1f} rows/s{tokens:>7.1f} tokens"
        f"{float(prediction.nfe.double().mean()):>7.1f} evaluations{trunk.seconds / sum(seconds):>6.2f} trunk"
        f"{operations / 1e9:>8.0f} GFLOP{limit / own:>6.2f} share{2e-9 * 1024**3 / product:>5.0f} GFLOP/s",
        flush=True,
    )
    return {"seconds": own, "products": own / product, "share": limit / own}


def measure_star(families: Sequence[str], repeats: int) -> dict[str, float]:
    """Products for each family."""
    found: dict[str, float] = {}
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            found[family] = measure(family, *star_run(family, Path(folder)), repeats)["products"]
    return found


def measure_text(families: Sequence[str], size_name: str, tokens: int, repeats: int) -> dict[str, float]:
    """Products for each family."""
    size, _ = SIZES[size_name]
    return {
        family: measure(family, *text_run(family, size, tokens), repeats)["products"] for family in families
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("text", "star"))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--families", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.part == "star":
        measure_star(options.families, options.repeats)
    else:
        measure_text(options.families, options.size, options.tokens, options.repeats)


if __name__ == "__main__":
    main()
