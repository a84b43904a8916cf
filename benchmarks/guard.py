"""Fails when something has become slower than recorded: short versions of the other benchmarks, as ratios.

    uv run nox -s bench
    uv run nox -s bench -- --record

Each number is a ratio within this run: CPU seconds over those of a float32 product of two matrices of
1024 x 1024, or over those of what another library needs for the same. What is slower than MARGIN times its
recorded ratio is measured twice more, and its best one counts: other work on the machine disturbs a
measurement, and no measurement is too fast. Record on the machine that compares: the ratios of another
processor differ.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import collators
import generation
import steps
import torch
import training

MARGIN = 1.3
RECORDED = Path(__file__).with_name("ratios.json")
FAMILIES = training.NAMES
QUICK = tuple(name for name in FAMILIES if name not in ("did", "editflow", "flexmdm"))
"""Without the families that draw how many tokens they write, which an untrained network does not know."""
SIZE = "short"
TOKENS = 16


def collator_ratios() -> dict[str, float]:
    """Products of a batch of each collator."""
    product = min(training.product_seconds() for _ in range(5))
    return {
        name: collators.measure(collate, batches=40)[0] / 1000 / product
        for name, collate in collators.training_collators().items()
    }


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "forward and backward": lambda: {name: training.measure(name, SIZE, 5)["products"] for name in FAMILIES},
    "step of star_easy": lambda: steps.measure_star(FAMILIES, 3),
    "arlm over GPT-2 of transformers": lambda: steps.measure_gpt2(SIZE, 5),
    "optimizer over torch's": lambda: steps.measure_optimizers(SIZE, 5),
    f"{TOKENS} tokens of text": lambda: generation.measure_text(QUICK, SIZE, TOKENS, 3),
    "paths of star_easy": lambda: generation.measure_star(QUICK, 1),
    "collator, 32 x 1024": collator_ratios,
}


def measured(parts: Sequence[str]) -> dict[str, float]:
    """All ratios of some parts."""
    return {f"{part}: {name}": ratio for part in parts for name, ratio in PARTS[part]().items()}


def slower(now: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """A line for each ratio that is worse than recorded by more than the margin, or not recorded."""
    lines = [
        f"slower: {name} is {ratio:.3g}, recorded {recorded[name]:.3g}: {ratio / recorded[name]:.2f} times, "
        f"allowed {MARGIN}"
        for name, ratio in now.items()
        if name in recorded and ratio > MARGIN * recorded[name]
    ]
    missing = [name for name in now if name not in recorded]
    return lines + [f"not recorded: {name} (see --record)" for name in missing]


def checked(parts: Sequence[str], recorded: dict[str, float]) -> list[str]:
    """The lines of ``slower`` for parts that are too slow three times."""
    lines: list[str] = []
    for part in parts:
        now = measured([part])
        for _ in range(2):
            if not any(line.startswith("slower") for line in slower(now, recorded)):
                break
            again = measured([part])
            now = {name: min(ratio, again[name]) for name, ratio in now.items()}
        lines += slower(now, recorded)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the ratios of these parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.record:
        found = {name: float(f"{ratio:.3g}") for name, ratio in measured(options.parts).items()}
        earlier = json.loads(RECORDED.read_text())["ratios"] if RECORDED.exists() else {}
        others = {name: earlier[name] for name in earlier if name.partition(":")[0] not in options.parts}
        machine = (
            f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
        )
        RECORDED.write_text(json.dumps({"machine": machine, "ratios": others | found}, indent=2) + "\n")
        print(f"{len(found)} ratios in {RECORDED}")
        return
    recorded = json.loads(RECORDED.read_text())
    if lines := checked(options.parts, recorded["ratios"]):
        sys.exit("\n".join([*lines, f"(recorded on {recorded['machine']})"]))
    print(f"no ratio is worse than {MARGIN} times the recorded one ({recorded['machine']})")


if __name__ == "__main__":
    main()
