"""Factorisation error of ancestral sampling with the exact network of a language, by number of steps.

Run in the root of the clone: python benchmarks/factorisation.py hmm pcfg
"""

import sys

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import xlm_mdlm
from xlm.modules import row_seeds
from xlm.modules.samplers import compose
from xlm.modules.schedules import LogLinear
from xlm.tasks.synthetic import (
    LanguageMetrics,
    MaskedOracle,
    draw_texts,
    factorisation_error,
    layout,
)
from xlm.tasks.tokenizers import NumberTokenizer

FOLDER = "packages/xlm-tasks/src/xlm/tasks/synthetic/configs/task"


def main(tasks: list[str]) -> None:
    """Print a line for each task and number of steps."""
    for task in tasks:
        node = OmegaConf.load(f"{FOLDER}/{task}.yaml").metrics.language.language
        language = instantiate(node)
        tokenizer = NumberTokenizer(language.num_tokens)
        ids = {"mask_id": tokenizer.mask_id, "pad_id": tokenizer.pad_id}
        ids["eos_id"] = tokenizer.eos_id
        width, rows = language.max_length, 1000
        collator = xlm_mdlm.MDLMPromptCollator(**ids, bos_id=tokenizer.bos_id, target_length=width)
        seeds = row_seeds(0, 0, torch.arange(rows))
        batch = collator([{"seed": seed} for seed in seeds])
        cells = layout(language, draw_texts(language, rows, np.random.default_rng(1)))
        generator = torch.Generator().manual_seed(0)
        for num_steps in (1, 2, 4, 8, 16, 32, 64):
            # The plan of ancestral sampling: each cell in a uniformly drawn step.
            plan = torch.randint(num_steps, (rows, width), generator=generator)
            error = factorisation_error(language, cells, plan)
            predictor = xlm_mdlm.MDLMPredictor(
                schedule=LogLinear(),
                sampler=compose("ancestral", num_steps=num_steps),
                **ids,
                suppressed_ids=[1, 4, 5, 6],
            )
            texts = predictor(MaskedOracle(language, tokenizer), batch, seeds)
            metrics = LanguageMetrics(language)
            metrics.update(
                [
                    {"text": tokenizer.decode(row[:length]), "reference": ""}
                    for row, length in zip(texts.ids.tolist(), texts.lengths, strict=True)
                ]
            )
            found = metrics.compute()
            print(
                task,
                num_steps,
                f"{width / num_steps:.2f}",
                f"{texts.nfe.double().mean():.1f}",
                f"{error.mean():.3f} {error.std() / rows**0.5:.3f}",
                *(
                    f"{name} {found[name]:.3f}"
                    for name in (
                        "cross_entropy",
                        "cross_entropy_error",
                        "entropy",
                        "impossible",
                        "tokens",
                        "expected_tokens",
                        "length_distance",
                        "drawn_length_distance",
                    )
                ),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
