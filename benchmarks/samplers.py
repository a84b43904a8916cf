"""What a sampler takes beside its network on this machine, and what it makes of a trained network.

    python benchmarks/samplers.py mdlm ancestral
    python benchmarks/samplers.py mlm confidence --rows 8 --length 128 --vocabulary 30522 --width 256
    python benchmarks/samplers.py runs/sudoku_tiny_mlm all --rows 500
    python benchmarks/samplers.py runs/text_tiny_mlm all --rows 64 --likelihood

With a family, an untrained network of four blocks writes ``rows`` texts, and scores them where the rule has
a likelihood. With the folder of a run of mlm or mdlm, its best checkpoint writes the first ``rows`` texts of
the test loader ``prediction``, and a table gives its metrics for one rule or, with "all" or "between", for
those of ``COMPARED`` or ``BETWEEN``, at the temperature and filters of the run. With ``--likelihood`` it
also scores the targets of these rows, all at temperature 1 without filters. Seconds are those of the
processor, of one thread.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from xlm.core.config.build import make
from xlm.core.config.recorded import read_config
from xlm.core.evaluation.predictions import GeneratedTexts
from xlm.core.evaluation.uses import GenerationUse, SamplerLikelihoodUse
from xlm.core.hub import source
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.assembly import assemble
from xlm.core.training.run import resolve
from xlm.modules import LogLinear
from xlm.modules.records import Targets
from xlm.modules.samplers import RULES, compose
from xlm_mdlm import MDLMPredictor, MDLMPromptCollator, MDLMRotary
from xlm_mlm import MLM, MLMPredictor, MLMPromptCollator

PAD, MASK, EOS, BOS, FIRST = range(5)


class Timed(nn.Module):
    """A network that adds up the seconds of its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0
        self.calls = 0

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Call the network."""
        started = time.process_time()
        result: Tensor = self.network(*arguments, **keywords)
        self.seconds += time.process_time() - started
        self.calls += 1
        return result


def parts(family: str, rule: Any, size: dict[str, Any]) -> tuple[nn.Module, Any, Any]:
    """Network, collator of prompts and predictor of a family."""
    cells: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "eos_id": None}
    sampler = compose(rule)
    if family == "mlm":
        collate = MLMPromptCollator(**cells, bos_id=BOS)
        return MLM(**size), collate, MLMPredictor(**cells, suppressed_ids=[EOS, BOS], sampler=sampler)
    predictor = MDLMPredictor(**cells, suppressed_ids=[EOS, BOS], sampler=sampler, schedule=LogLinear())
    return MDLMRotary(**size), MDLMPromptCollator(**cells, bos_id=BOS), predictor


COMPARED: dict[str, dict[str, Any]] = {
    "any_order": {},
    "any_order, 4 steps": {"rule": "any_order", "num_steps": 4},
    "ancestral, 8 steps": {"rule": "ancestral", "num_steps": 8},
    "first_hitting": {},
    "left_to_right": {},
    "confidence": {},
    "confidence, 4 steps": {"rule": "confidence", "num_steps": 4},
    "confidence by margin": {"rule": "confidence", "rank": "margin"},
    "low_confidence": {},
    "threshold 0.99": {"rule": "threshold", "tau": 0.99},
    "threshold 0.9": {"rule": "threshold", "tau": 0.9},
    "threshold 0.7": {"rule": "threshold", "tau": 0.7},
    "entropy_bound 0.01": {"rule": "entropy_bound", "gamma": 0.01},
    "entropy_bound 0.1": {"rule": "entropy_bound", "gamma": 0.1},
    "entropy_bound 0.5": {"rule": "entropy_bound", "gamma": 0.5},
    "klass": {},
    "remdm_cap, 16 steps": {"rule": "remdm_cap", "num_steps": 16, "eta": 0.1},
    "remdm_loop, 32 steps": {"rule": "remdm_loop", "num_steps": 32},
    "remdm_conf, 16 steps": {"rule": "remdm_conf", "num_steps": 16},
    "p2": {},
}
"""The rows of the table of a trained network."""

BETWEEN: dict[str, dict[str, Any]] = {
    **{f"threshold {tau}": {"rule": "threshold", "tau": tau} for tau in (0.95, 0.98, 0.995)},
    **{
        f"threshold {tau} by margin": {"rule": "threshold", "rank": "margin", "tau": tau}
        for tau in (0.9, 0.95, 0.98, 0.99)
    },
    **{f"entropy_bound {gamma}": {"rule": "entropy_bound", "gamma": gamma} for gamma in (0.003, 0.03)},
    **{
        f"entropy_bound {gamma} by margin": {"rule": "entropy_bound", "rank": "margin", "gamma": gamma}
        for gamma in (0.003, 0.01, 0.03, 0.1)
    },
}
"""Rules that write several cells at once, with constants between those of the table."""


def measure(family: str, rule: Any, rows: int, length: int, size: dict[str, Any]) -> None:
    """Print what one rule takes beside an untrained network, in generation and in a likelihood."""
    network, collate, predict = parts(family, rule, size)
    model = Timed(network.eval())
    target = torch.full((length,), FIRST)
    batch = collate([{"seed": row, "target_ids": target} for row in range(rows)])
    predict(model, collate([{"seed": 0, "target_ids": target[:8]}]), torch.zeros(1, dtype=torch.int64))
    prediction, of_texts = timed(model, lambda: predict(model, batch, torch.arange(rows)))
    nfe = float(prediction.nfe.double().mean())
    print(f"{family} {rule}: {of_texts}, {nfe:.0f} evaluations of a row")
    if compose(rule).order != "tokens":
        targets = Targets(prediction.ids, prediction.lengths)
        _, of_likelihood = timed(model, lambda: predict.likelihood(model, batch, targets, torch.arange(rows)))
        print(f"{family} {rule}, likelihood of these texts: {of_likelihood}")


def timed(model: Timed, work: Callable[[], Any]) -> tuple[Any, str]:
    """The result of some work with a network, and what it took."""
    model.seconds, model.calls = 0.0, 0
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    own = seconds - model.seconds
    text = f"{seconds:.1f} CPU s, network {model.seconds:.1f}, sampler {own:.2f} ({own / seconds:.0%})"
    return result, f"{text}, {model.calls} calls"


def compare(folder: Path, names: list[str], rows: int, *, likelihood: bool) -> None:
    """Print a table of rules for the best checkpoint of a run."""
    config: dict[str, Any] = {**read_config(folder / "config.yaml"), "output_dir": str(folder.parent)}
    if likelihood:
        config["datamodule"]["test"]["prediction"] |= {"columns": None, "max_rows": rows}
        config["predictor"] |= {"temperature": 1.0, "top_k": None, "top_p": None}
    run = resolve(OmegaConf.create(config))
    harness, data = assemble(run, tests_only=True)
    source.load(harness.model, str(RunFolder(folder).best_checkpoint()))
    harness.model.eval()
    [loader] = [
        loader
        for uses, loader in zip(data.loaders["test"], data.test_dataloader(), strict=True)
        if uses.endswith("prediction")
    ]
    batches = list(itertools.islice(loader, -(-rows // int(loader.batch_size or 1))))
    columns: list[str] = []
    for name in names:
        options = {**COMPARED, **BETWEEN}.get(name) or {"rule": name}
        node = {"_target_": "xlm.modules.samplers.compose", **options}
        slots = replace(
            harness.slots, predictor=make({**run.settings.predictor, "sampler": node}, "predictor")
        )
        found = evaluate(GenerationUse(slots, "test/prediction", GeneratedTexts()), harness.model, batches)
        found["CPU s"] = found.pop("seconds")
        if likelihood and make(node, "sampler").order != "tokens":
            scores = evaluate(
                SamplerLikelihoodUse(slots, "test/prediction", GeneratedTexts()), harness.model, batches
            )
            found |= {"CPU s of the likelihood": scores.pop("seconds"), **scores}
        columns = columns or sorted(found)
        if name == names[0]:
            print("| rule | " + " | ".join(columns) + " |")
        cells = [f"{found[key]:.3f}" if key in found else "none" for key in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def evaluate(use: Any, model: nn.Module, batches: Sequence[Any]) -> dict[str, float]:
    """The metrics of a use, and its CPU seconds."""
    started = time.process_time()
    with torch.no_grad():
        for batch in batches:
            use.update(model, batch)
    seconds = time.process_time() - started
    return {key: value for metric in use.metrics for key, value in metric.compute().items()} | {
        "seconds": seconds
    }


def main() -> None:
    """Measure one rule of a family, or compare rules on a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", help="mlm, mdlm or the folder of a run")
    further = (name for name in {**COMPARED, **BETWEEN} if name not in RULES)
    parser.add_argument("rule", choices=("all", "between", *RULES, *further))
    for name, default in (("rows", 8), ("length", 128), ("vocabulary", 30522), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--likelihood", action="store_true", help="of a run: also score the targets")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = list({"all": COMPARED, "between": BETWEEN}.get(chosen.rule, [chosen.rule]))
    if chosen.family not in ("mlm", "mdlm"):
        compare(Path(chosen.family), names, chosen.rows, likelihood=chosen.likelihood)
        return
    size: dict[str, Any] = {"vocab_size": chosen.vocabulary, "d_model": chosen.width}
    for name in RULES if chosen.rule == "all" else names:
        measure(chosen.family, name, chosen.rows, chosen.length, {**size, "num_layers": 4, "num_heads": 4})


if __name__ == "__main__":
    main()
