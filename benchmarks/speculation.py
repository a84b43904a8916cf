"""What speculation saves on a trained network: calls, states and seconds for the same texts.

    python benchmarks/speculation.py runs/text_tiny_mdlm --rows 64
    python benchmarks/speculation.py runs/text_tiny_mdlm --rows 64 --at-once 64

The best checkpoint of a run of mlm or mdlm writes ``rows`` texts of the task's longest target, without
prompts, ``at-once`` rows in a batch, at temperature 1 without filters. *Flips* are texts that differ from
those without speculation: rounding in float32 depends on the rows beside a row, in float64 it does not. *Gap*
is the least distance of a uniform number to the border of the token that it gave, in probability: rounding of
that size can flip it. Seconds are those of the processor, of one thread.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from xlm.core.config.build import make
from xlm.core.config.recorded import read_config
from xlm.core.hub import source
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.assembly import assemble
from xlm.core.training.run import resolve
from xlm.modules import TokenSampling


@dataclass(frozen=True)
class Watched(TokenSampling):
    """Draws tokens, and keeps the least distance to a border."""

    gaps: list[float] = field(default_factory=list[float], kw_only=True)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """One token per row."""
        tokens = super().draw(logits, uniforms)
        p = self.log_probs(logits).exp()
        upper = p.cumsum(1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        lower = upper - p.gather(1, tokens.unsqueeze(1)).squeeze(1)
        # Below 0 and above 1 there is no other token.
        below = (uniforms - lower).where(lower > 1e-12, 1.0)
        above = (upper - uniforms).where(upper < 1 - 1e-12, 1.0)
        self.gaps.append(float(below.minimum(above).abs().min()))
        return tokens


RULES = ("any_order", "first_hitting", "left_to_right")


def generate(predict: Any, model: Any, batch: Any, at_once: int) -> tuple[list[list[int]], list[float]]:
    """Texts, and (evaluations, calls, states, seconds) of a text on average."""
    texts: list[list[int]] = []
    sums, started = torch.zeros(3, dtype=torch.float64), time.process_time()
    rows = len(batch["target_start"])
    for first in range(0, rows, at_once):
        part = {name: table[first : first + at_once] for name, table in batch.items()}
        made = predict(model, part, torch.arange(first, first + len(part["target_start"])))
        texts += [ids[:length].tolist() for ids, length in zip(made.ids, made.lengths, strict=True)]
        sums += torch.stack([made.nfe.sum(), made.calls.sum(), made.states.sum()]).double()
    return texts, [*(sums / rows).tolist(), (time.process_time() - started) / rows]


def main() -> None:
    """Print a table of rules by turns in a call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    config: dict[str, Any] = {**read_config(chosen.run / "config.yaml"), "output_dir": str(chosen.run.parent)}
    config["predictor"] |= {"temperature": 1.0, "top_k": None, "top_p": None}
    run = resolve(OmegaConf.create(config))
    harness, _ = assemble(run, tests_only=True)
    source.load(harness.model, str(RunFolder(chosen.run).best_checkpoint()))
    model = harness.model.eval()
    collate = make(run.settings.datamodule.test["prediction"].collator, "collator")
    batch = collate([{"seed": row} for row in range(chosen.rows)])
    gaps: list[str] = []
    print("| rule | turns in a call | evaluations | calls | states | CPU ms of a text | flips |")
    print("|---|---|---|---|---|---|---|")
    for rule in RULES:
        plain: list[list[int]] = []
        for most in (None, 2, 4, 8):
            node = {"_target_": "xlm.modules.samplers.compose", "rule": rule, "speculate": most}
            predict = make({**run.settings.predictor, "sampler": node}, "predictor")
            texts, (nfe, calls, states, seconds) = generate(predict, model, batch, chosen.at_once)
            plain = plain or texts
            flips = sum(text != other for text, other in zip(texts, plain, strict=True))
            cells = f"{nfe:.1f} | {calls:.1f} | {states:.1f} | {1000 * seconds:.0f} | {flips}"
            print(f"| {rule} | {most or 1} | {cells} |", flush=True)
        node = {"_target_": "xlm.modules.samplers.compose", "rule": rule}
        predict = make({**run.settings.predictor, "sampler": node}, "predictor")
        predict._sampling = watched = Watched()
        generate(predict, model, batch, chosen.at_once)
        gaps.append(f"{rule} {min(watched.gaps):.1e}")
    print(f"gap in {chosen.rows} texts: {', '.join(gaps)}")


if __name__ == "__main__":
    main()
