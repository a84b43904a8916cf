"""Training steps on a CPU: star_easy, a GPT-2 of transformers, the optimizers, and torch.compile.

    OMP_NUM_THREADS=1 uv run python benchmarks/steps.py star
    OMP_NUM_THREADS=1 uv run python benchmarks/steps.py gpt2 --size large
    OMP_NUM_THREADS=1 uv run python benchmarks/steps.py optimizers
    OMP_NUM_THREADS=1 uv run python benchmarks/steps.py compile

One thread and the CPU seconds of the process, in turns with what they are compared with; medians.
``products`` is the time in units of a float32 product of two matrices of 1024 x 1024, taken in the same
turns: a number that carries over to another machine better than seconds do.

star: whole steps (forward, backward, clipping, optimizer) with the experiment's config and batches, 64 rows,
at width 128 and 4 layers.
gpt2: arlm beside a plain loop of ``transformers.GPT2LMHeadModel`` with the same width, depth, vocabulary,
tokens and AdamW, but learnt positions.
optimizers: a step of each on the network of training.py, beside torch's own.
compile: steps of star and passes of training.py, with and without ``torch.compile``.
"""

import argparse
import io
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_families import NAMES, mean_loss, text_parts, texts
from training import LENGTH, SIZES, cpu_seconds, product_seconds

from xlm.modules.optimizers import FusedAdamW, MuonWithAdamW

STAR_NETWORK = ("d_model=128", "num_layers=4", "num_heads=4")
STAR_BATCHES = 4


def in_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, run once before and then in turns, and of the product (``product``)."""
    found: dict[str, list[float]] = {name: [] for name in (*works, "product")}
    for work in works.values():
        work()
    for _ in range(repeats):
        found["product"].append(product_seconds())
        for name, work in works.items():
            found[name].append(cpu_seconds(work))
    return {name: statistics.median(values) for name, values in found.items()}


def assembled_star(family: str, folder: Path, *more: str) -> Any:
    """The harness and the data of star_easy at width 128 and 4 layers."""
    from loop import composed

    from xlm.core.training.assembly import assemble
    from xlm.core.training.run import resolve

    sizes = [f"model.trunk.{size}" for size in STAR_NETWORK]
    config = composed(folder, f"star_easy_{family}", 1000, *sizes, *more)
    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return assemble(resolve(config))


class StarStep:
    """One optimizer step of star_easy, on the next of a few batches."""

    def __init__(self, family: str, folder: Path, *, compiled: bool = False) -> None:
        harness, datamodule = assembled_star(family, folder)
        loader = iter(datamodule.train_dataloader())
        self.batches = [next(loader).batch for _ in range(STAR_BATCHES)]
        self.slots, self.model, self.step = harness.slots, harness.model.train(), 0
        self.network = torch.compile(self.model) if compiled else self.model
        self.optimizer = self.slots.optimizer(self.model.named_parameters())

    def __call__(self) -> None:
        """Make a step."""
        output = self.slots.loss(self.network, self.batches[self.step % len(self.batches)])
        (output.loss_sum / output.loss_count.clamp(min=1)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1


def measure_star(families: Sequence[str], repeats: int) -> dict[str, float]:
    """Products of a step of each family."""
    found: dict[str, float] = {}
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            step = StarStep(family, Path(folder))
            seconds = in_turns({"step": lambda step=step: [step() for _ in range(STAR_BATCHES)]}, repeats)
        own = seconds["step"] / STAR_BATCHES
        found[family] = own / seconds["product"]
        print(
            f"{family:<9}{1000 * own:>7.0f} ms a step{found[family]:>7.1f} products, "
            f"{at_70(own, seconds['product']):.2f} s at 70 GFLOP/s"
        )
    return found


def at_70(seconds: float, product: float) -> float:
    """Seconds on a machine whose products run at 70 GFLOP/s, if all runs as much slower."""
    return seconds / product * 2 * 1024**3 / 70e9


def measure_gpt2(size_name: str, repeats: int) -> dict[str, float]:
    """Seconds of arlm over those of a GPT-2, forward and backward, and a whole step."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size, rows = SIZES[size_name]
    parts = text_parts("arlm", size, LENGTH)
    batch = parts.collate(texts(0, rows, LENGTH, size.vocab_size))
    ids = batch["input_ids"]
    config = GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=LENGTH,
        n_embd=size.d_model,
        n_layer=size.num_layers,
        n_head=size.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function in one kernel
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    other = GPT2LMHeadModel(config).train()
    optimizers = {
        "arlm": FusedAdamW(parts.model.named_parameters(), lr=1e-4),
        "gpt2": torch.optim.AdamW(other.parameters(), lr=1e-4),
    }

    def arlm() -> None:
        optimizers["arlm"].zero_grad()
        mean_loss(parts, parts.model, batch).backward()

    def gpt2() -> None:
        optimizers["gpt2"].zero_grad()
        logits = other(input_ids=ids[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

    passes = in_turns({"arlm": arlm, "gpt2": gpt2}, repeats)
    steps = in_turns({name: optimizer.step for name, optimizer in optimizers.items()}, repeats)
    found = {
        "forward and backward": passes["arlm"] / passes["gpt2"],
        "step": (passes["arlm"] + steps["arlm"]) / (passes["gpt2"] + steps["gpt2"]),
    }
    print(
        f"forward and backward: arlm {passes['arlm']:.2f} s, GPT-2 of transformers {passes['gpt2']:.2f} s, "
        f"ratio {found['forward and backward']:.2f}"
    )
    print(
        f"optimizer: FusedAdamW {steps['arlm']:.3f} s, torch's AdamW {steps['gpt2']:.3f} s; "
        f"whole step, ratio {found['step']:.2f}"
    )
    return found


def measure_optimizers(size_name: str, repeats: int) -> dict[str, float]:
    """Seconds of a step of both optimizers over those of torch's own."""
    size, _ = SIZES[size_name]
    model = text_parts("mdlm", size, LENGTH).model
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "blocks" in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "blocks" not in name]
    torch_muon = torch.optim.Muon(matrices, lr=1e-4), torch.optim.AdamW(others, lr=1e-4)
    works: dict[str, Callable[[], object]] = {
        "FusedAdamW": FusedAdamW(model.named_parameters(), lr=1e-4).step,
        "torch.optim.AdamW": torch.optim.AdamW(model.parameters(), lr=1e-4).step,
        "MuonWithAdamW": MuonWithAdamW(model.named_parameters(), lr=1e-4, matrices="blocks").step,
        "torch.optim.Muon, AdamW": lambda: [optimizer.step() for optimizer in torch_muon],
    }
    seconds = in_turns(works, repeats)
    print(f"{sum(map(torch.numel, model.parameters())) / 1e6:.1f} million parameters")
    for name in works:
        print(f"{name:<24}{seconds[name]:>8.3f} s{seconds[name] / seconds['product']:>8.1f} products")
    return {
        "AdamW": seconds["FusedAdamW"] / seconds["torch.optim.AdamW"],
        "Muon": seconds["MuonWithAdamW"] / seconds["torch.optim.Muon, AdamW"],
    }


def all_processes(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of its finished children, such as a compiler."""

    def now() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    start = now()
    work()
    return now() - start


def text_pass(family: str, size_name: str, *, compiled: bool) -> Callable[[], None]:
    """Forward and backward of training.py."""
    torch.manual_seed(0)
    size, rows = SIZES[size_name]
    parts = text_parts(family, size, LENGTH)
    batch = parts.collate(texts(0, rows, LENGTH, size.vocab_size))
    network = torch.compile(parts.model) if compiled else parts.model

    def work() -> None:
        parts.model.zero_grad()
        mean_loss(parts, network, batch).backward()

    return work


def measure_compile(families: Sequence[str], size_name: str, repeats: int) -> None:
    """Time with and without the compiler, its own time, and the number of steps after which it has paid."""
    print(f"{'':<20}{'plain':>9}{'compiled':>10}{'ratio':>7}{'compiler':>10}{'pays after':>14}")
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            plain, fast = (StarStep(family, Path(folder), compiled=compiled) for compiled in (False, True))
        report_compile(f"{family} star_easy", plain, fast, STAR_BATCHES, 2 * repeats)
    for family in families:
        plain, fast = (text_pass(family, size_name, compiled=compiled) for compiled in (False, True))
        report_compile(f"{family} {size_name}", plain, fast, 1, repeats)


def report_compile(
    name: str, plain: Callable[[], None], fast: Callable[[], None], batches: int, repeats: int
) -> None:
    """Print a row; both run over the same number of batches of different shapes."""
    first = all_processes(lambda: [fast() for _ in range(2 * batches)])
    seconds = in_turns(
        {
            "plain": lambda: [plain() for _ in range(batches)],
            "fast": lambda: [fast() for _ in range(batches)],
        },
        repeats,
    )
    compiler = first - 2 * seconds["fast"]
    saved = (seconds["plain"] - seconds["fast"]) / batches
    pays = f"{compiler / saved:,.0f} steps" if saved > 0 else "never"
    print(
        f"{name:<20}{seconds['plain'] / batches:>7.3f} s{seconds['fast'] / batches:>8.3f} s"
        f"{seconds['fast'] / seconds['plain']:>7.2f}{compiler:>8.0f} s{pays:>14}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("star", "gpt2", "optimizers", "compile"))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--families", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.part == "star":
        measure_star(options.families, options.repeats)
    elif options.part == "gpt2":
        measure_gpt2(options.size, options.repeats)
    elif options.part == "optimizers":
        measure_optimizers(options.size, options.repeats)
    else:
        measure_compile(options.families, options.size, options.repeats)


if __name__ == "__main__":
    main()
