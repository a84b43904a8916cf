"""The parts of gpu.py that run in a process of their own: one part of one family.

A part prepares (imports, the network, a small comparison, compiling), reports that it is ready, and waits for
its turn; it then measures alone on the device. Each result is one line of JSON on stdout.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gpu_families import (
    Parts,
    Size,
    attention_kernels,
    copy_bytes,
    gradient_norm,
    matmul_flops,
    mean_loss,
    on_device,
    scored_cells,
    seconds_of,
    text_parts,
    texts,
    training_flops,
    wait,
)
from torch import Tensor, nn

READY, GO = "ready", "go"
WARM_UP, TIMED, BATCHES = 3, 10, 4


@dataclass(frozen=True)
class Scale:
    """Sizes of networks and batches."""

    size: Size
    length: int
    rows: int
    """Rows of a training batch; halved until they fit into memory."""
    matmul: int
    new_tokens: int
    generated_rows: int


LARGE = Scale(Size(768, 12, 12, 50257, dropout=0.1), 1024, 32, 8192, 128, 8)
SMALL = Scale(Size(32, 2, 2, 97, dropout=0.1), 24, 4, 64, 6, 2)
"""Sizes for a test on a CPU."""

Tell = Callable[[dict[str, Any]], None]


@contextmanager
def reported(tell: Tell, what: str) -> Iterator[None]:
    """Report an error as the result of ``what``, and continue."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the table shows it; the other results are still measured
        traceback.print_exc()
        frames = [
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "/xlm" in frame.filename or "benchmarks" in frame.filename
        ]
        line = " ".join(str(error).split())[:300]
        tell({"what": what, "error": f"{type(error).__name__}: {line}", "at": frames[-2:]})


def device_metrics(scale: Scale, device: torch.device, tell: Tell) -> None:
    """The device and its rates."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    tell(
        {
            "what": "device",
            "name": name,
            "torch": torch.__version__,
            "bf16_flops": matmul_flops(device, scale.matmul),
            "copy_bytes": copy_bytes(device, 2048 if device.type == "cuda" else 8),
        }
    )


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 as in Lightning's bf16-mixed."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def made(family: str, scale: Scale) -> Parts:
    """The family with reproducible weights, none of which is zero."""
    torch.manual_seed(0)
    parts = text_parts(family, scale.size, scale.length)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return parts


def compare_with_cpu(family: str, scale: Scale, parts: Parts, device: torch.device, tell: Tell) -> None:
    """Loss and norm of the gradient of a small batch: CPU float32, device float32, device bfloat16."""
    batch = parts.collate(texts(0, 2, min(scale.length, 128), scale.size.vocab_size))
    parts.model.eval()
    found: dict[str, tuple[float, float]] = {}
    for name, place in (("cpu", torch.device("cpu")), ("float32", device), ("bfloat16", device)):
        parts.model.to(place)
        parts.model.zero_grad(set_to_none=True)
        with torch.autocast(place.type, dtype=torch.bfloat16, enabled=name == "bfloat16"):
            loss = mean_loss(parts, parts.model, on_device(batch, place))
        loss.backward()
        found[name] = (float(loss.detach()), gradient_norm(parts.model))
    parts.model.zero_grad(set_to_none=True)
    loss, norm = found["cpu"]
    differences = {
        f"{name}_{kind}_difference": abs(value - reference) / abs(reference)
        for name in ("float32", "bfloat16")
        for kind, value, reference in zip(("loss", "gradient"), found[name], (loss, norm), strict=True)
    }
    tell({"what": "equal to the CPU", "family": family, "loss": loss, "gradient": norm, **differences})


class Trained:
    """A network with its optimizer, and batches on the device."""

    def __init__(
        self, parts: Parts, network: nn.Module, scale: Scale, rows: int, device: torch.device
    ) -> None:
        self.parts = parts
        self.network = network
        self.device = device
        self.optimizer = torch.optim.AdamW(
            parts.model.parameters(), lr=1e-4, fused=device.type == "cuda" or None
        )
        self.on_host = [
            parts.collate(texts(number, rows, scale.length, scale.size.vocab_size))
            for number in range(BATCHES)
        ]
        self.batches = [on_device(batch, device) for batch in self.on_host]
        self.number = 0

    def step(self) -> None:
        """One optimizer step on the next batch."""
        batch = self.batches[self.number % BATCHES]
        self.number += 1
        with autocast(self.device):
            loss = mean_loss(self.parts, self.network, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def train(
    family: str,
    scale: Scale,
    parts: Parts,
    network: nn.Module,
    device: torch.device,
    tell: Tell,
    compiled: bool,
) -> Trained:
    """Time training steps; halve the rows until they fit into memory."""
    parts.model.train()
    rows = scale.rows
    while True:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            return timed(
                family, Trained(parts, network, scale, rows, device), rows * scale.length, tell, compiled
            )
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            parts.model.zero_grad(set_to_none=True)
            rows //= 2


def timed(family: str, trained: Trained, tokens: int, tell: Tell, compiled: bool) -> Trained:
    """Warm up, time, count."""
    device = trained.device
    start = time.perf_counter()
    for _ in range(max(WARM_UP, BATCHES)):
        trained.step()
    wait(device)
    warm_up = time.perf_counter() - start
    seconds = seconds_of(trained.step, device, TIMED)
    flops = sum(training_flops(family, trained.parts.model, batch) for batch in trained.on_host) / BATCHES
    cells = sum(scored_cells(family, batch) for batch in trained.on_host) / BATCHES
    tell(
        {
            "what": "training",
            "family": family,
            "compiled": compiled,
            "rows": len(trained.on_host[0]["input_ids"]),
            "width": max(batch["input_ids"].shape[1] for batch in trained.on_host),
            "milliseconds": 1000 * seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops / seconds,
            "scored_cells": cells,
            "peak_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            "warm_up_seconds": warm_up,
        }
    )
    return trained


def look_for_waits(family: str, trained: Trained, tell: Tell) -> None:
    """One step in which every synchronisation with the device is an error."""
    if trained.device.type != "cuda":
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        trained.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tell({"what": "waits in a step", "family": family, "waits": 0})


def generate(family: str, scale: Scale, parts: Parts, device: torch.device, tell: Tell) -> None:
    """Tokens a second of a small batch, untrained."""
    parts.model.eval()
    examples = texts(0, scale.generated_rows, scale.new_tokens, scale.size.vocab_size)
    small = text_parts(family, Size(2, 1, 1, scale.size.vocab_size), scale.new_tokens)  # its collator only
    prompts = small.collate_prompts(
        [{"seed": row["seed"], "prompt_ids": row["target_ids"][: scale.new_tokens // 4]} for row in examples]
    )
    seeds = torch.tensor([row["seed"] for row in examples], device=device)
    batch = on_device(prompts, device)
    predictions: list[Any] = []

    def work() -> None:
        with autocast(device):
            predictions.append(parts.predict(parts.model, batch, seeds))

    work()
    seconds = seconds_of(work, device, 1)
    lengths, evaluations = predictions[-1].lengths, predictions[-1].nfe
    tell(
        {
            "what": "generation",
            "family": family,
            "rows": scale.generated_rows,
            "tokens": int(lengths.sum()),
            "evaluations": float(evaluations.double().mean()),
            "seconds": seconds,
            "tokens_per_second": int(lengths.sum()) / seconds,
        }
    )


class AnyShape(nn.Module):
    """A network compiled once for any number of rows, columns and cells."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.compiled = (torch.compile(model),)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the network returns."""
        for value in (*arguments, *named.values()):
            if isinstance(value, Tensor):
                for axis in range(value.dim()):
                    torch._dynamo.maybe_mark_dynamic(value, axis)
        return self.compiled[0](*arguments, **named)


def run_part(
    part: str, family: str, scale: Scale, device: torch.device, tell: Tell, turn: Callable[[], None]
) -> None:
    """Run a part; ``turn`` is called when it is ready and returns when it may measure."""
    if part == "device":
        turn()
        with reported(tell, "device"):
            device_metrics(scale, device, tell)
        return
    parts = made(family, scale)
    if part == "plain":
        with reported(tell, f"equal to the CPU: {family}"):
            compare_with_cpu(family, scale, parts, device, tell)
    parts.model.to(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    network: nn.Module = parts.model
    if part == "compiled":
        network = AnyShape(parts.model)
        start = time.perf_counter()
        with reported(tell, f"compiling: {family}"):
            for number in range(2):
                batch = on_device(
                    parts.collate(texts(number, 4, scale.length, scale.size.vocab_size)), device
                )
                with autocast(device):
                    loss = mean_loss(parts, network.train(), batch)
                loss.backward()
            wait(device)
            tell({"what": "compiling", "family": family, "seconds": time.perf_counter() - start})
        parts.model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    turn()
    name = f"training, {part}: {family}"
    with reported(tell, name):
        trained = train(family, scale, parts, network, device, tell, compiled=part == "compiled")
        if part == "plain":
            with reported(tell, f"waits in a step: {family}"):
                look_for_waits(family, trained, tell)
        with reported(tell, f"kernels, {part}: {family}"):
            kernels = attention_kernels(trained.step, device)
            tell({"what": "kernels", "family": family, "compiled": part == "compiled", **kernels})
        del trained
    if part == "plain":
        with reported(tell, f"generation: {family}"):
            generate(family, scale, parts, device, tell)


def main() -> None:
    """Run one part for gpu.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("device", "plain", "compiled"))
    parser.add_argument("family")
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)

    def turn() -> None:
        say(READY)
        if sys.stdin.readline().strip() != GO:
            sys.exit(1)

    scale = SMALL if options.small else LARGE
    device = torch.device(options.device)
    run_part(options.part, options.family, scale, device, lambda result: say(json.dumps(result)), turn)


if __name__ == "__main__":
    main()
