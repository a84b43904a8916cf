"""One training of gpu_star.py: a family on a level of star graphs, for some seconds."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_families import FIRST, NAMES, Parts, Size, mean_loss, on_device, path_parts
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from xlm.modules import MuonWithAdamW, row_seeds
from xlm.tasks.star import LEVELS, StarLevel, star_rows
from xlm.tasks.star.graphs import StarGraphs, draw_graphs, graph_digests, split_of_digest

DRAWS = 4096
TESTED_AT_ONCE = 1000


@dataclass(frozen=True)
class Settings:
    """Network, batch and learning."""

    d_model: int = 256
    num_layers: int = 6
    num_heads: int = 8
    rows: int = 1024
    learning_rate: float = 1.5e-3
    warm_up: int = 200
    cool_down: float = 0.25
    """Final fraction of the time in which the learning rate decays to nearly zero."""
    average: float = 0.995
    """Decay of the average of the weights, which is tested."""
    tested: int = 1000
    validated: int = 500
    between: float = 10.0
    """Seconds from one validation to the next; five times as long as a validation takes if that is more."""


SETTINGS = {
    "tiny": Settings(rows=512),
    "easy": Settings(),
    "medium": Settings(),
    "hard": Settings(num_layers=8, rows=512),
}
SMALL = Settings(d_model=32, num_layers=2, num_heads=2, rows=16, tested=8, validated=4, between=1.0)
PERFECT = 0.9985
"""Exact match in validation at which a training stops early."""


class Graphs(IterableDataset[Any]):
    """Batches of new graphs of the training split, collated; different in every worker."""

    def __init__(self, level: StarLevel, rows: int, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.level = level
        self.rows = rows
        self.collate = collate
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        """Without end."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        generator = np.random.default_rng([self.seed, worker])
        examples: list[dict[str, Any]] = []
        number = 0
        while True:
            graphs = draw_graphs(self.level, DRAWS, generator)
            for index, digest in enumerate(graph_digests(graphs.edges, graphs.num_edges)):
                if split_of_digest(digest) != "train":
                    continue
                examples.append(encoded(graphs, index))
                if len(examples) == self.rows:
                    places = number * self.rows + torch.arange(self.rows)
                    seeds = row_seeds(self.seed, worker, places).tolist()
                    for example, place, seed in zip(examples, places.tolist(), seeds, strict=True):
                        example |= {"place": place, "seed": seed}
                    yield dict(self.collate(examples))
                    examples, number = [], number + 1


def encoded(graphs: StarGraphs, index: int) -> dict[str, Any]:
    """A graph as ids, like `encode_star` with the NumberTokenizer, but without going through text."""
    edges = graphs.edges[index, : graphs.num_edges[index]].reshape(-1)
    path = graphs.paths[index, : graphs.path_lengths[index]]
    return from_nodes(edges, path)


def from_nodes(edges: Any, path: Any) -> dict[str, Any]:
    """Ids of the edges' ends in turn, source and goal; and of the path's edges."""
    ends = np.array([path[0], path[-1]])
    target = np.stack([path[:-1], path[1:]], axis=1).reshape(-1)
    return {
        "prompt_ids": torch.from_numpy(np.concatenate([edges, ends]) + FIRST),
        "target_ids": torch.from_numpy(target + FIRST),
    }


def unseen(level: str, split: str, rows: int) -> list[dict[str, Any]]:
    """Graphs of a split of the task, with their seeds."""
    seeds = row_seeds(1, 0, torch.arange(rows)).tolist()
    return [
        {**from_nodes(np.array(row["edges"]).reshape(-1), np.array(row["path"])), "seed": seed}
        for row, seed in zip(
            star_rows(split, level=level, num_rows={split: rows}, seed=0), seeds, strict=True
        )
    ]


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


class Average:
    """The average of a network's weights over its steps, in a copy of it."""

    def __init__(self, model: nn.Module, copy: nn.Module, decay: float) -> None:
        self.weights = list(model.parameters())
        self.model = copy.eval()
        self.averages = list(copy.parameters())
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        torch._foreach_lerp_(self.averages, self.weights, 1 - min(self.decay, step / (step + 10)))


def exact_match(parts: Parts, model: nn.Module, rows: list[Any], device: torch.device) -> tuple[float, float]:
    """Exact match, and the mean number of evaluations."""
    hits = evaluations = 0
    for start in range(0, len(rows), TESTED_AT_ONCE):
        some = rows[start : start + TESTED_AT_ONCE]
        given = [{"prompt_ids": row["prompt_ids"], "seed": row["seed"]} for row in some]
        seeds = torch.tensor([row["seed"] for row in some], device=device)
        with autocast(device):
            prediction = parts.predict(model, on_device(parts.collate_prompts(given), device), seeds)
        evaluations += int(prediction.nfe.sum())
        texts = zip(prediction.ids.tolist(), prediction.lengths.tolist(), some, strict=True)
        hits += sum(ids[:length] == row["target_ids"].tolist() for ids, length, row in texts)
    return hits / len(rows), evaluations / len(rows)


def save(path: Path, model: nn.Module, steps: int, rows: int, seconds: float) -> None:
    """Weights in half precision, sufficient to continue from."""
    weights = {name: value.half().cpu() for name, value in model.state_dict().items()}
    part = path.with_suffix(".part")
    torch.save({"weights": weights, "steps": steps, "rows": rows, "seconds": seconds}, part)
    part.replace(path)


def train(
    level: str,
    family: str,
    settings: Settings,
    device: torch.device,
    *,
    deadline: float,
    checkpoint: Path,
    workers: int,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Train until the deadline or the first validation without mistakes; then test."""
    star = LEVELS[level]
    size = Size(
        settings.d_model, settings.num_layers, settings.num_heads, FIRST + star.num_labels, dropout=0.0
    )
    torch.manual_seed(0)
    parts = path_parts(family, size, star.max_target_length)
    past = {"steps": 0, "rows": 0, "seconds": 0.0}
    if checkpoint.exists():
        loaded = torch.load(checkpoint, weights_only=True)
        parts.model.load_state_dict({name: value.float() for name, value in loaded.pop("weights").items()})
        past = loaded
    parts.model.to(device).train()
    copy = path_parts(family, size, star.max_target_length).model.to(device)
    copy.load_state_dict(parts.model.state_dict())
    average = Average(parts.model, copy, settings.average)
    optimizer = MuonWithAdamW(parts.model.named_parameters(), lr=settings.learning_rate, betas=(0.9, 0.98))
    graphs = Graphs(star, settings.rows, parts.collate, seed=past["steps"])
    loader = DataLoader(
        graphs,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    # Made now, since little time is left after the deadline.
    validation, test = unseen(level, "val", settings.validated), unseen(level, "test", settings.tested)

    started = time.monotonic()
    step, next_look = 0, started + settings.between
    losses: list[torch.Tensor] = []

    def metrics() -> dict[str, Any]:
        seconds = time.monotonic() - started
        return {
            "step": past["steps"] + step,
            "rows": past["rows"] + step * settings.rows,
            "seconds": past["seconds"] + seconds,
            "steps_per_second": step / seconds,
            "loss": float(torch.stack(losses).mean()) if losses else math.nan,
        }

    def keep() -> None:
        done = metrics()
        save(checkpoint, parts.model, done["step"], done["rows"], done["seconds"])

    for batch in loader:
        left = (deadline - time.monotonic()) / (settings.cool_down * (deadline - started))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min((step + 1) / settings.warm_up, 1.0, max(left, 0.02))
        with autocast(device):
            loss = mean_loss(parts, parts.model, on_device(batch, device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(step)
        losses = [*losses[-49:], loss.detach()]
        now = time.monotonic()
        if now < min(next_look, deadline):
            continue
        keep()
        if now >= deadline:
            break
        right, _ = exact_match(parts, average.model, validation, device)
        tell({**metrics(), "validation": right})
        done = time.monotonic()
        next_look = done + max(settings.between, 5 * (done - now))
        if right >= PERFECT:
            break
    right, evaluations = exact_match(parts, average.model, test, device)
    tell({**metrics(), "test": right, "tested": settings.tested, "evaluations": evaluations})


def main() -> None:
    """Train for gpu_star.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("family", choices=NAMES)
    parser.add_argument(
        "--until", type=float, required=True, help="when to stop, on the system's monotonic clock"
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    for name, kind in (("d-model", int), ("num-layers", int), ("num-heads", int), ("rows", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--learning-rate", type=float)
    options = parser.parse_args()
    names = ("d_model", "num_layers", "num_heads", "rows", "learning_rate")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    train(
        options.level,
        options.family,
        replace(SMALL if options.small else SETTINGS[options.level], **chosen),
        torch.device("cpu" if options.small or options.cpu else "cuda"),
        deadline=options.until,
        checkpoint=options.checkpoints / f"{options.level}_{options.family}.pt",
        workers=0 if options.small else options.workers,
        tell=lambda result: print(json.dumps(result), flush=True),
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
