"""What a sampler takes beside its network, on this machine.

    python benchmarks/samplers.py mdlm ancestral
    python benchmarks/samplers.py mlm confidence --rows 8 --length 128 --vocabulary 30522 --width 256

An untrained network of four blocks writes ``rows`` texts. Seconds are those of the processor, of one thread.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

from xlm.modules import LogLinear
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


def main() -> None:
    """Measure one rule of one family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=("mlm", "mdlm"))
    parser.add_argument("rule", choices=tuple(RULES))
    for name, default in (("rows", 8), ("length", 128), ("vocabulary", 30522), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": chosen.vocabulary,
        "d_model": chosen.width,
        "num_layers": 4,
        "num_heads": 4,
    }
    network, collate, predict = parts(chosen.family, chosen.rule, size)
    model = Timed(network.eval())
    target = torch.full((chosen.length,), FIRST)
    batch = collate([{"seed": row, "target_ids": target} for row in range(chosen.rows)])
    predict(model, collate([{"seed": 0, "target_ids": target[:8]}]), torch.zeros(1, dtype=torch.int64))
    model.seconds, model.calls = 0.0, 0
    started = time.process_time()
    prediction = predict(model, batch, torch.arange(chosen.rows))
    seconds = time.process_time() - started
    own = seconds - model.seconds
    print(
        f"{chosen.family} {chosen.rule}: {seconds:.1f} CPU s, network {model.seconds:.1f}, sampler {own:.2f} "
        f"({own / seconds:.0%}), {model.calls} calls, "
        f"{float(prediction.nfe.double().mean()):.0f} evaluations of a row"
    )


if __name__ == "__main__":
    main()
