"""The tasks in every family: given tokens stay, local copies are read, exact networks give the language."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import xlm_arlm
import xlm_mdlm
import xlm_mlm
from xlm.modules import row_seeds
from xlm.modules.samplers import Sampler, compose
from xlm.modules.schedules import LogLinear
from xlm.tasks.sudoku_extreme import generated_rows
from xlm.tasks.synthetic import ARLMOracle, MaskedOracle, encode_tokens, hmm, log_probs
from xlm.tasks.tokenizers import NumberTokenizer

from .running import EXPERIMENTS, FAMILIES, composed, run_fast

SMALL_NETWORK = ("model.trunk.d_model=32", "model.trunk.num_layers=1", "model.trunk.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"
FAST = ("test_after_training=false", "trainer.val_check_interval=4", "show_generations=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: the families share the prepared rows of a task."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_sudoku_and_keeps_the_clues(family: str, tmp_path: Path, cache: Path) -> None:
    overrides = (FEW_ROWS, *SMALL_NETWORK, *FAST)
    metrics = run_fast(tmp_path, cache, "train", f"sudoku_tiny_{family}", *overrides)
    assert metrics["val/prediction/broken_clues"] == 0.0
    assert 0 <= metrics["val/prediction/board_accuracy"] <= metrics["val/prediction/cell_accuracy"] <= 1
    assert metrics["val/lm/nll"] > 0


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("safe_tiny_")])
def test_a_family_learns_molecules(experiment: str, tmp_path: Path, cache: Path) -> None:
    metrics = run_fast(tmp_path, cache, "train", experiment, FEW_ROWS, *SMALL_NETWORK, *FAST)
    assert 0 <= metrics["val/prediction/quality"] <= metrics["val/prediction/validity"] <= 1
    assert metrics["val/lm/nll"] > 0


@pytest.mark.parametrize("family", ["mdlm", "ilm"])
def test_given_fragments_stay_in_the_generations(family: str, tmp_path: Path, cache: Path) -> None:
    """Cells in place for the one, tokens in front for the other."""
    overrides = (
        "task=safe_tiny_motif",
        "datamodule.val.prediction.columns=null",
        "datamodule.test.prediction.columns=null",
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
    )
    metrics = run_fast(
        tmp_path, cache, "train", f"safe_tiny_{family}", FEW_ROWS, *SMALL_NETWORK, *overrides, *FAST[2:]
    )
    assert metrics["test/prediction/given_kept"] == 1.0
    records = [
        json.loads(line) for line in (tmp_path / "fast" / "predictions.jsonl").read_text().splitlines()
    ]
    for record in records:
        num_given = sum(record["fixed"])
        assert 0 < num_given < len(record["reference_ids"])
        assert record["ids"][:num_given] == record["reference_ids"][:num_given]


def test_a_local_copy_goes_the_way_of_the_published_set(tmp_path: Path) -> None:
    """The published layout in a folder; a puzzle with two solutions is refused and counted."""
    from xlm.core.training.assembly import make_parts, make_prepared
    from xlm.core.training.run import resolve

    copy = tmp_path / "copy"
    copy.mkdir()
    rows = list(generated_rows("train", level="tiny", num_rows={"train": 60}, seed=0))
    rows[7]["question"] = "." * 70 + rows[7]["answer"][70:]
    for split in ("train", "test"):
        with (copy / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["source", "question", "answer", "rating"])
            writer.writeheader()
            writer.writerows(rows)
    config = composed(
        "sudoku_extreme_mdlm",
        "job_type=prepare_data",
        "job_name=x",
        f"source={copy}",
        f"datamodule.cache_dir={tmp_path / 'cache'}",
        "task.source.one_in=3",
    )
    run = resolve(config)
    prepared = make_prepared(run, make_parts(run))
    cards = prepared.cards
    assert cards["train"].rows + cards["val"].rows == cards["test"].rows == 59
    assert cards["val"].rows > 0
    assert cards["test"].counts.refused == 1
    assert cards["test"].tokens == 59 * 81


def test_published_molecules_are_streamed_from_a_local_copy(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published layout and column; training reads a stream, validation is prepared."""
    molecules = ["c13ccccc14.CC2=O.C4(=O)O.O23", "CCO", "C1CCCCC1", "N3CCNCC3.c13ccccc1", "C" * 100]
    for split, count in {"train": 40, "validation": 10, "test": 10}.items():
        folder = tmp_path / "copy" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"input": molecules[n % 5], "mc_labels": [0.5]} for n in range(count)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001-0.parquet")
    metrics = run_fast(
        tmp_path,
        cache,
        "train",
        "safe_mlm",
        f"source={tmp_path / 'copy'}",
        "task.max_target_length=64",
        "trainer.precision=32-true",
        "trainer.accumulate_grad_batches=1",
        *SMALL_NETWORK,
        *FAST,
    )
    assert metrics["val/lm/nll"] > 0
    assert "val/prediction/diversity" in metrics
    printed = capsys.readouterr().out
    # Two of the five cannot be cut, one of 100 atoms is too long.
    assert "val: of 10 rows read 2 too long (task.length_limit), dropped, 4 without a bond" in printed
    assert re.search(r"stream: of 40 rows read 8 too long .*, dropped, 16 without a bond", printed)


LANGUAGE = hmm(num_states=2, num_tokens=2, mean_length=3.0, max_length=4, sharpness=2.0, seed=0)
TOKENIZER = NumberTokenizer(2)
PAD, EOS, MASK, BOS = TOKENIZER.pad_id, TOKENIZER.eos_id, TOKENIZER.mask_id, TOKENIZER.bos_id
SPECIAL = [*range(7)]
TEXTS = [
    [int(digit) for digit in f"{number:0{length}b}"] for length in range(1, 5) for number in range(2**length)
]


def mdlm(sampler: Sampler) -> xlm_mdlm.MDLMPredictor:
    return xlm_mdlm.MDLMPredictor(
        schedule=LogLinear(),
        sampler=sampler,
        mask_id=MASK,
        pad_id=PAD,
        eos_id=EOS,
        suppressed_ids=SPECIAL,
    )


ARLM = (
    xlm_arlm.ARLMPredictor(pad_id=PAD, eos_id=EOS, suppressed_ids=SPECIAL),
    xlm_arlm.ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=4),
    ARLMOracle(LANGUAGE, TOKENIZER),
)
MASKED_ORACLE = MaskedOracle(LANGUAGE, TOKENIZER)
MDLM_COLLATOR = xlm_mdlm.MDLMPromptCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, target_length=4)
ONE_CELL_A_STEP = {
    "arlm": ARLM,
    "mdlm first hitting": (mdlm(compose("first_hitting")), MDLM_COLLATOR, MASKED_ORACLE),
    "mdlm confidence": (mdlm(compose("confidence")), MDLM_COLLATOR, MASKED_ORACLE),
    "mlm random": (
        xlm_mlm.MLMPredictor(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=SPECIAL),
        xlm_mlm.MLMPromptCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, target_length=4),
        MASKED_ORACLE,
    ),
}


def chi_squared(parts: tuple[Any, Callable[..., Any], torch.nn.Module], count: int) -> tuple[float, int]:
    """Statistic of generated texts against the language, and its degrees of freedom."""
    predictor, collator, network = parts
    seeds = row_seeds(3, 0, torch.arange(count))
    prediction = predictor(network, collator([{"seed": seed} for seed in seeds]), seeds)
    rows = zip(prediction.ids.tolist(), prediction.lengths.tolist(), strict=True)
    counts = Counter(tuple(token - 7 for token in ids[:length]) for ids, length in rows)
    expected = (log_probs(LANGUAGE, TEXTS).exp() * count).tolist()
    assert sum(counts[tuple(text)] for text in TEXTS) == count
    terms = [(counts[tuple(text)] - mean) ** 2 / mean for text, mean in zip(TEXTS, expected, strict=True)]
    return sum(terms), len(terms) - 1


@pytest.mark.parametrize("name", list(ONE_CELL_A_STEP))
def test_samplers_with_the_exact_network_follow_the_language(name: str) -> None:
    found, freedom = chi_squared(ONE_CELL_A_STEP[name], 6000)
    assert found < freedom + 4 * math.sqrt(2 * freedom)


def test_writing_all_cells_at_once_does_not() -> None:
    found, freedom = chi_squared(
        (mdlm(compose("ancestral", num_steps=1)), MDLM_COLLATOR, MASKED_ORACLE), 6000
    )
    assert found > freedom + 10 * math.sqrt(2 * freedom)


def examples(texts: Sequence[Sequence[int]]) -> list[Any]:
    return [
        {
            "seed": torch.tensor(seed),
            "target_ids": torch.tensor(encode_tokens({"tokens": [*text]}, TOKENIZER)["target_ids"]),
        }
        for seed, text in enumerate(texts)
    ]


def test_the_likelihood_of_the_causal_oracle_is_that_of_the_language() -> None:
    collator = xlm_arlm.ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=EOS, max_length=4)
    likelihood = xlm_arlm.ARLMLoss().likelihood(ARLM[2], collator(examples(TEXTS)))
    assert likelihood.models_length
    torch.testing.assert_close(likelihood.nll, -log_probs(LANGUAGE, TEXTS), rtol=0, atol=1e-6)


def test_the_bound_of_the_masked_oracle_is_tight() -> None:
    """For each order of the cells the exact conditional probabilities multiply to p(x)."""
    draws = 400
    collator = xlm_mdlm.MDLMLikelihoodCollator(
        mask_id=MASK,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        target_length=4,
        num_draws=draws,
        schedule=LogLinear(),
    )
    loss = xlm_mdlm.MDLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=SPECIAL)
    likelihood = loss.likelihood(MASKED_ORACLE, collator(examples(TEXTS)))
    difference = likelihood.nll + log_probs(LANGUAGE, TEXTS)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(len(TEXTS))
    assert float(difference.std()) < 0.2


def test_a_run_reports_the_exact_metrics(tmp_path: Path) -> None:
    found = run_fast(
        tmp_path,
        tmp_path / "cache",
        "train",
        None,
        "recipe=ngram",
        "model_type=mdlm",
        "model=rotary_micro_mdlm",
        "task=pcfg",
        "task.source.num_rows={train: 64, val: 16, test: 16}",
        "model.trunk.d_model=16",
        "model.trunk.num_layers=1",
    )
    metrics = {
        name.removeprefix("test/prediction/"): value
        for name, value in found.items()
        if name.startswith("test/prediction/")
    }
    assert 0 < metrics["impossible"] <= 1
    assert metrics["entropy"] == pytest.approx(12.0, abs=0.5)
    assert metrics["reference_cross_entropy"] == pytest.approx(12.0, abs=6.0)
    assert metrics["expected_tokens"] == pytest.approx(5.79, abs=0.01)
