"""The card of a result of the toy family, against numbers worked out from its rows."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.core.evaluation.predictions import PredictionWriter
from xlm.eval.card import Clock, command_line
from xlm.eval.data_rows import Lengths
from xlm.eval.rows import Scores, token_entropy
from xlm.eval.usage import peak_memory

from .conftest import Run

TOKENS = [row % 3 + 1 for row in range(20)]
"""Length of each row: as many times the token 3, which the tokenizer decodes as ``3 3 3``."""


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())


@pytest.fixture
def run(run_toy: Run, tmp_path: Path) -> Path:
    run_toy("job_type=train", "trainer.max_steps=10", "datamodule.test.lm.max_rows=18")
    return tmp_path / "runs" / "toy"


def test_training_leaves_a_card_of_its_test(run: Path) -> None:
    card, metrics = card_of(run), json.loads((run / "metrics.json").read_text())
    likelihood_loader, generation_loader = card["loaders"]["lm"], card["loaders"]["prediction"]
    [likelihood] = likelihood_loader["likelihood"]
    assert (likelihood["of"], likelihood["kind"], likelihood["length"]) == ("network", "exact", "given")
    tokens = sum(TOKENS[:18])
    assert (likelihood["rows"], likelihood["tokens"]) == (18, tokens)
    assert likelihood["bytes"] == sum(2 * length - 1 for length in TOKENS[:18])
    for name in ("nll", "nll_per_token", "perplexity"):
        assert likelihood[name]["value"] == pytest.approx(metrics[f"test/lm/{name}"])
        assert likelihood[name]["low"] <= likelihood[name]["value"] <= likelihood[name]["high"]
    nats = metrics["test/lm/nll"] * 18
    assert likelihood["nll_per_byte"]["value"] == pytest.approx(nats / likelihood["bytes"])
    assert likelihood["bits_per_byte"] == pytest.approx(nats / likelihood["bytes"] / math.log(2))
    assert likelihood["standard_error"] == metrics["test/lm/nll_standard_error"]
    assert likelihood_loader["rows"]["left_out"]["not_evaluated"] == 2
    assert generation_loader["rows"]["left_out"]["not_evaluated"] == 0
    assert generation_loader["rows"]["hash"] != likelihood_loader["rows"]["hash"]
    texts = generation_loader["generation"]
    assert texts["texts"] == 20
    assert texts["metrics"]["exact_match"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert texts["metrics"]["distinct_1"]["value"] == pytest.approx(20 / sum(TOKENS))
    assert texts["metrics"]["token_entropy"]["value"] == 0
    assert texts["lengths"] == texts["lengths_of_the_data"]
    assert texts["length_distance"] == 0
    assert card["weights"]["step"] == 10
    assert card["weights"]["kind"] == "raw"
    assert card["versions"]["xlm-core"] == "1.0.0"
    assert card["machine"]["dtype"] == "32-true"
    assert card["machine"]["threads"] == torch.get_num_threads()
    assert card["training"]["tokens"] == 2 * (sum(TOKENS) + 20)  # two epochs; each prompt has one token
    assert 0 < card["training"]["seconds"] <= card["machine"]["seconds"] + 1  # which is rounded
    assert card["machine"]["cpu_seconds"] > 0
    assert card["command"] is None
    text = (run / "card.md").read_text()
    assert "| exact match | 1 [1, 1] |" in text
    assert f"({likelihood['bytes']:,} bytes of text)" in text
    assert "| peak resident memory of the process | " in text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has this file")
def test_peak_memory_is_that_of_the_process_or_of_tensors_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kibibytes] = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    found = peak_memory()
    assert found is not None
    assert found["of"] == "resident"
    assert found["megabytes"] == pytest.approx(kibibytes * 1024 / 1e6, rel=0.3)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 3_500_000)
    assert peak_memory() == {"of": "gpu_allocated", "megabytes": 3.5}


def test_a_later_evaluation_has_a_card_of_its_own(run: Path, run_toy: Run) -> None:
    run_toy("job_type=generate")
    [folder] = (run / "generate").iterdir()
    card = card_of(folder)
    assert list(card["loaders"]) == ["prediction"]
    assert card["loaders"]["prediction"]["rows"] == card_of(run)["loaders"]["prediction"]["rows"]
    assert not (folder / "likelihoods.jsonl").exists()


def test_texts_that_a_sampler_cannot_write_are_counted_apart(run: Path, run_toy: Run) -> None:
    """The toy sampler writes one token only, and the tokens of these rows differ."""
    run_toy(
        "job_type=eval",
        "+task.source.token=null",
        "datamodule.test.prediction.uses=[sampler_likelihood]",
    )
    [folder] = (run / "eval").iterdir()
    [likelihood] = card_of(folder)["loaders"]["prediction"]["likelihood"]
    assert likelihood["of"] == "sampler"
    impossible = likelihood["impossible_rows"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert impossible == round(metrics["test/prediction/share_impossible"] * 20) > 0
    assert likelihood["perplexity"] is None
    assert "| perplexity | infinite |" in (folder / "card.md").read_text()


class ToyLanguage:
    """The metric of a task whose texts of n tokens have the log-probability -n."""

    def __init__(self) -> None:
        self.sums = {"rows": torch.zeros(())}

    def reset(self) -> None: ...
    def update(self, generations: object) -> None: ...
    def compute(self) -> dict[str, float]:
        return {}

    def text_log_probs(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([-float(len(text.split())) for text in texts], dtype=torch.float64)


def test_a_known_distribution_gives_its_divergence(run: Path, run_toy: Run) -> None:
    """The nll of this sampler is 0, so KL is the mean of log p; without the length there is none."""
    for event in ("cells", "text"):
        run_toy(
            "job_type=eval",
            f"+task.metrics.language._target_={__name__}.ToyLanguage",
            "datamodule.test.prediction.uses=[sampler_likelihood]",
            f"sampler_likelihood.event={event}",
        )
    first, second = sorted((run / "eval").iterdir())
    [likelihood] = card_of(first)["loaders"]["prediction"]["likelihood"]
    assert likelihood["kl"]["value"] == pytest.approx(-sum(TOKENS) / 20)
    assert likelihood["kl"]["low"] < likelihood["kl"]["value"] < likelihood["kl"]["high"]
    assert "| KL(language \\|\\| sampler) | -1.95 [" in (first / "card.md").read_text()
    [likelihood] = card_of(second)["loaders"]["prediction"]["likelihood"]
    assert likelihood["kl"] is None


def test_replicates_of_a_metric_are_those_of_its_sums() -> None:
    class Ratio:
        def __init__(self) -> None:
            self.reset()

        def reset(self) -> None:
            self.sums = {"parts": torch.zeros(2, 2), "number": torch.zeros((), dtype=torch.int64)}

        def update(self, rows: list[dict[str, Any]]) -> None:
            for row in rows:
                self.sums["parts"] += torch.full((2, 2), float(row["ids"][0]))
                self.sums["number"] += 1

        def compute(self) -> dict[str, float]:
            assert self.sums["parts"].shape == (2, 2)
            return {"mean": float(self.sums["parts"][1, 1] / self.sums["number"].clamp(min=1))}

    class Judge(Ratio):
        row_by_row = False

    class Kept(Ratio):
        def reset(self) -> None:
            super().reset()
            self.lists = {"texts": torch.zeros(0)}

    scores = Scores({"ratio": Ratio(), "judge": Judge(), "kept": Kept()})  # pyright: ignore[reportArgumentType]  # of dicts
    for token in range(300):
        scores.add({"ids": [token % 10], "nfe": 2})
    values, replicates = scores.finish()
    assert values["mean"] == pytest.approx(4.5)
    assert set(values) == {
        "mean", "length", "nfe_per_sequence", "tokens_per_evaluation", "token_entropy", "distinct_1",
        "distinct_2", "distinct_3",
    }  # fmt: skip
    # The standard error of the mean of 300 uniform digits.
    assert float(replicates["mean"].std()) == pytest.approx(2.872 / math.sqrt(300), rel=0.1)


def test_the_command_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/bin/xlm", "job_type=frontier", "++sweep={predictor.temperature: [1]}", "++more=2"]
    monkeypatch.setattr("sys.argv", words)
    assert command_line("frontier") == "xlm job_type=frontier 'sweep={predictor.temperature: [1]}' ++more=2"
    monkeypatch.setattr("sys.argv", ["/bin/pytest"])
    assert command_line("frontier") is None


def test_seconds_of_the_first_batch_are_apart() -> None:
    clock = Clock(processes=2)
    for batch, seconds in ((0, 10.0), (0, 10.0), (1, 1.0), (1, 1.0), (2, 2.0)):
        clock.add({"batch": batch, "seconds": seconds}, tokens=6)
    assert clock.speed() == {
        "seconds": 12.0,
        "seconds_of_first_batch": 10.0,
        "sequences_per_second": 3 / 2,
        "tokens_per_second": 18 / 2,
    }


def test_distance_of_lengths() -> None:
    assert Lengths([1, 2]).distance(Lengths([2, 3])) == pytest.approx(0.5)
    assert Lengths([1, 1, 2]).distance(Lengths([1, 2])) == pytest.approx(1 / 6)
    assert Lengths().distance(Lengths([1])) is None
    quantiles = Lengths(range(1, 101)).quantiles()
    assert quantiles is not None
    assert (quantiles["mean"], quantiles["0.05"], quantiles["0.5"], quantiles["1"]) == (50.5, 5, 50, 100)


def test_entropy_of_a_text() -> None:
    assert token_entropy([7, 7, 8, 8]) == pytest.approx(math.log(2))
    assert token_entropy([]) == 0


def test_rows_of_any_order_are_merged(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, num_traces=0)
    writer.open()
    for loader, rows in (("test/b", (3, 1)), ("test/a", (0,)), ("test/b", (0, 2))):
        writer.likelihoods.write(loader, rows, [{"nll": float(row)} for row in rows])
    writer.close()
    writer.merge()
    records = [json.loads(line) for line in (tmp_path / "likelihoods.jsonl").read_text().splitlines()]
    assert [(record["loader"], record["row"], record["batch"]) for record in records] == [
        ("test/a", 0, 0), ("test/b", 0, 1), ("test/b", 1, 0), ("test/b", 2, 1), ("test/b", 3, 0),
    ]  # fmt: skip
