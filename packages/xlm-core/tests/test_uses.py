"""Every combination of what a loader may be used for, in every job that runs loaders."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # pyright: ignore[reportAttributeAccessIssue]  # made by protobuf at run time

from xlm.core.command.compose import check
from xlm.core.config.entry_points import USES, offered
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import SamplerLikelihoodSettings
from xlm.core.data import LoadedBatch
from xlm.core.evaluation.metrics import LossMean
from xlm.core.evaluation.predictions import GeneratedTexts
from xlm.core.evaluation.uses import GenerationUse, SamplerLikelihoodUse
from xlm.core.protocols import Example
from xlm.modules.records import SamplerLikelihood

from . import toy_jobs
from .conftest import Compose, Run
from .toy_family import ToyExactMatch, ToyLossOutput, ToyPredictor, ToyTokenizer

LOADERS = {
    "_".join(uses): list(uses)
    for number in (1, 2, 3, 4)
    for uses in combinations(("loss", "likelihood", "generation", "sampler_likelihood"), number)
}
"""A loader for each combination, named after it."""
TERMS = {"a quarter", "the.rest"}
LIKELIHOOD = ("nll", "nll_standard_error", "nll_per_token", "perplexity", "bits_per_token", "is_bound")
METRICS = {
    "loss": {"loss"} | TERMS,
    "likelihood": {*LIKELIHOOD, "models_length", "num_draws"},
    "sampler_likelihood": {f"sampler_{name}" for name in (*LIKELIHOOD, "models_length", "num_draws", "nfe")}
    | {"share_impossible", "share_impossible_draws", "share_near_ties"},
    "generation": {
        "exact_match",
        "length",
        "nfe_per_sequence",
        "calls_per_sequence",
        "states_per_sequence",
        "seconds_per_sequence",
        "tokens_per_evaluation",
    },
}
ONE_STEP = ("trainer.max_steps=1", "trainer.log_every_n_steps=1", "trainer.val_check_interval=1")


class Jobs(NamedTuple):
    """What three jobs gave, each with all loaders."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    rows: dict[str, Counter[str]]
    """Generated texts by job and loader."""


def loaders(*stages: str) -> list[str]:
    """Overrides that replace the loaders of stages by one for each combination of uses."""
    return [f"~datamodule.{stage}.{name}" for stage in stages for name in ("lm", "prediction")] + [
        f"+datamodule.{stage}.{name}={{split: {stage}, uses: {json.dumps(uses)}, num_workers: 0, "
        "batch_size: 8, max_rows: null, collator: {_target_: toy_family.ToyCollator}}"
        for stage in stages
        for name, uses in LOADERS.items()
    ]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    root = tmp_path_factory.mktemp("root")
    given = ("loss={_target_: toy_family.ToyLossOfTwoTerms}", "monitor=val/loss/loss", *ONE_STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_jobs.HERE))
        metrics = {
            job: toy_jobs.run(root, f"job_type={job}", *given, *loaders("val", "test"))
            for job in ("train", "eval", "generate")
        }
    folder = root / "runs/toy"
    folders = {"train": folder} | {job: max((folder / job).iterdir()) for job in ("eval", "generate")}
    rows = {
        job: Counter(
            json.loads(line)["loader"] for line in (place / "predictions.jsonl").read_text().splitlines()
        )
        for job, place in folders.items()
    }
    return Jobs(folder, metrics, rows)


def reported(metrics: Mapping[str, float], loader: str) -> set[str]:
    return {name.removeprefix(loader) for name in metrics if name.startswith(loader)}


@pytest.mark.parametrize("name", LOADERS)
def test_each_job_does_what_the_loader_is_used_for(jobs: Jobs, name: str) -> None:
    uses = LOADERS[name]
    every = {metric for use in uses for metric in METRICS[use]}
    generated = METRICS["generation"] if "generation" in uses else set[str]()
    assert reported(jobs.metrics["train"], f"test/{name}/") == every
    assert reported(jobs.metrics["eval"], f"test/{name}/") == every
    assert reported(jobs.metrics["generate"], f"test/{name}/") == generated
    for rows in jobs.rows.values():
        assert rows[f"test/{name}"] == (20 if generated else 0)


@pytest.mark.parametrize("name", LOADERS)
def test_validation_reports_what_the_test_reports(jobs: Jobs, name: str) -> None:
    logged = {column for row in curves(jobs.folder) for column, value in row.items() if value}
    assert reported(dict.fromkeys(logged, 0.0), f"val/{name}/") == {
        metric for use in LOADERS[name] for metric in METRICS[use]
    }


def test_one_use_does_not_change_what_another_reports(jobs: Jobs) -> None:
    alone = {metric: use for use in METRICS for metric in METRICS[use]}
    for job, metrics in jobs.metrics.items():
        for name, value in metrics.items():
            stage, _, metric = name.split("/")
            if metric != "seconds_per_sequence":
                assert value == metrics[f"{stage}/{alone[metric]}/{metric}"], (job, name)


def curves(folder: Path) -> list[dict[str, str]]:
    [file] = folder.glob("csv/version_*/metrics.csv")
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_a_term_has_one_name_in_training_validation_and_test(jobs: Jobs) -> None:
    logged = {column: float(value) for row in curves(jobs.folder) for column, value in row.items() if value}
    names = reported(logged, "train/")
    assert names == {"loss"} | TERMS
    assert names <= reported(logged, "val/loss/")
    assert names <= reported(jobs.metrics["eval"], "test/loss/")
    for where in ("train/", "val/loss/"):
        assert logged[f"{where}a quarter"] == pytest.approx(logged[f"{where}loss"] / 4)
        assert logged[f"{where}the.rest"] == pytest.approx(logged[f"{where}loss"] * 3 / 4)


def test_tensorboard_draws_a_term_of_training_and_validation_in_one_chart(jobs: Jobs) -> None:
    events = EventAccumulator(str(jobs.folder / "tensorboard")).Reload()
    config = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    [category] = Layout.FromString(config).category
    tags = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert tags["the.rest"] == [r"^train/the\.rest$", r"^val/[^/]+/the\.rest$"]
    assert set(tags) == {"loss"} | TERMS


@pytest.mark.parametrize("uses", [uses for uses in LOADERS.values() if "generation" not in uses])
def test_nothing_to_generate_is_refused(compose_toy: Compose, uses: list[str]) -> None:
    config = compose_toy(
        "job_type=generate", "~datamodule.test.prediction", f"datamodule.test.lm.uses=[{','.join(uses)}]"
    )
    with pytest.raises(XLMError, match=r"job_type=generate needs a loader with `uses: \[generation\]`"):
        check(config)


@pytest.mark.parametrize("job", ["train", "eval"])
def test_no_loader_at_all_is_named_before_anything_runs(run_toy: Run, tmp_path: Path, job: str) -> None:
    nothing = ("~datamodule.test.prediction", "~datamodule.test.lm")
    with pytest.raises(XLMError, match=r"datamodule\.test: has no loader"):
        run_toy(f"job_type={job}", *nothing)
    assert not (tmp_path / "runs").exists()


def test_training_without_a_test_needs_no_loader_of_it(run_toy: Run, tmp_path: Path) -> None:
    nothing = ("~datamodule.test.prediction", "~datamodule.test.lm", "test_after_training=false")
    assert "val/lm/nll" in run_toy("job_type=train", *nothing, *ONE_STEP)


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (
            "[loss,generate]",
            r"generate'. Did you mean generation\? Installed packages offer "
            r"generation, likelihood, loss, sampler_likelihood\.",
        ),
        ("[loss,loss]", r"uses is \['loss', 'loss'\]: name each once"),
    ],
)
def test_a_use_that_nobody_offers_or_that_stands_twice(run_toy: Run, uses: str, message: str) -> None:
    with pytest.raises(XLMError, match=rf"datamodule\.val\.lm.*{message}"):
        run_toy("job_type=train", f"datamodule.val.lm.uses={uses}")


SCORES = ("datamodule.test.prediction.uses=[sampler_likelihood]", "datamodule.val.prediction.uses=[loss]")


def test_the_sampler_is_scored_with_the_options_of_the_config(run_toy: Run) -> None:
    options = ("sampler_likelihood.num_draws=3", "sampler_likelihood.event=cells", "monitor=val/lm/loss")
    metrics = run_toy("job_type=train", *SCORES, *options, *ONE_STEP)
    found = {name: metrics[f"test/prediction/{name}"] for name in METRICS["sampler_likelihood"]}
    assert (found["sampler_num_draws"], found["sampler_nfe"]) == (3.0, 3.0)
    assert (found["sampler_is_bound"], found["sampler_models_length"]) == (1.0, 1.0)
    assert (found["share_impossible"], found["sampler_nll"]) == (0.0, 0.0)


def test_a_predictor_without_a_likelihood_and_rows_without_targets_are_refused(run_toy: Run) -> None:
    no_likelihood = ("predictor={_target_: misfits.BrokenPredictor}", "monitor=val/lm/loss")
    with pytest.raises(XLMError, match=r"no likelihood\(model, .*datamodule.test.prediction.uses. requires"):
        run_toy("job_type=train", *SCORES, *no_likelihood)
    slots: Any = SimpleNamespace(predictor=ToyPredictor())
    nothing = LoadedBatch[Any](
        batch={}, seeds=torch.arange(1), examples=[{"seed": 0}], num_tokens=0, places=[0]
    )
    with pytest.raises(XLMError, match=r"test\.a\.columns: sampler_likelihood scores the targets"):
        SamplerLikelihoodUse(slots, "test/a", GeneratedTexts()).check(
            nothing, "datamodule.test.a", trains=False
        )


def test_a_metric_looks_for_what_it_needs_before_a_text_is_generated() -> None:
    seen: list[Sequence[str]] = []

    class Needy(ToyExactMatch):
        def check(self, references: Sequence[str]) -> None:
            seen.append(references)
            raise OSError("the judge is out")

    slots: Any = SimpleNamespace(generation_metrics={"needy": Needy()}, tokenizer=ToyTokenizer())
    use = GenerationUse(slots, "test/a", GeneratedTexts())
    examples: list[Example] = [{"seed": 0, "target_ids": torch.tensor([3, 1])}, {"seed": 1}]
    batch = LoadedBatch[Any](batch={}, seeds=torch.arange(2), examples=examples, num_tokens=2, places=[0, 1])
    with pytest.raises(XLMError, match=r"^task\.metrics\.needy: the judge is out$"):
        use.check(batch, "datamodule.test.a", trains=False)
    assert seen == [["3 1", ""]]


def test_a_coupling_of_orders_reaches_the_predictor_or_is_refused(run_toy: Run) -> None:
    coupling = ("sampler_likelihood.coupling=rotations", "monitor=val/lm/loss")
    with pytest.raises(XLMError, match=r"sampler_likelihood\.coupling: rotations is for samplers that write"):
        run_toy("job_type=train", *SCORES, *coupling)

    given: dict[str, Any] = {}

    def likelihood(*_: object, num_draws: int, event: str, coupling: str) -> SamplerLikelihood:
        given.update(num_draws=num_draws, event=event, coupling=coupling)
        one = torch.ones(1, dtype=torch.int64)
        return SamplerLikelihood.of(
            torch.zeros(1, 1, dtype=torch.float64),
            num_tokens=one,
            is_exact=False,
            models_length=True,
            smallest_gap=torch.ones(1, dtype=torch.float64),
            nfe=one,
        )

    slots: Any = SimpleNamespace(
        predictor=SimpleNamespace(likelihood=likelihood),
        sampler_likelihood=SamplerLikelihoodSettings(num_draws=4, coupling="rotations"),
        model=torch.nn.Identity(),
    )
    batch = LoadedBatch[Any](
        batch={},
        seeds=torch.arange(1),
        examples=[{"seed": 0, "target_ids": torch.tensor([1])}],
        num_tokens=1,
        places=[0],
    )
    use = SamplerLikelihoodUse(slots, "test/a", GeneratedTexts())
    use.check(batch, "datamodule.test.a", trains=False)
    use.update(slots.model, batch)
    assert given == {"num_draws": 4, "event": "text", "coupling": "rotations"}


def test_a_loss_has_the_same_terms_for_every_batch() -> None:
    one = torch.tensor(1.0)
    metric = LossMean(["token"])
    metric.update(ToyLossOutput(one, one, {"token": one}))
    with pytest.raises(XLMError, match="of this batch are stop, those of the first rows were token"):
        metric.update(ToyLossOutput(one, one, {"stop": one}))


# ---- uses of other packages -----------------------------------------------------------------------------

THEIRS = """
from xlm.core.evaluation.metrics import SummedMetric
import torch


class Rows:
    def __init__(self):
        self.reset()

    def reset(self):
        self.sums = {"rows": torch.tensor(0)}

    def update(self, examples):
        self.sums["rows"] += len(examples)

    def compute(self):
        return {"rows": float(self.sums["rows"])}


class CountRows:
    needs_examples = True

    def __init__(self, slots, loader, texts):
        self.metrics = [SummedMetric(Rows())]

    def check(self, batch, key, *, trains):
        assert len(batch.examples) == 2

    def update(self, network, batch):
        self.metrics[0].update(batch.examples)
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path that offers uses, as installing it would."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def install(name: str, code: str, **uses: str) -> None:
        metadata = tmp_path / "site" / f"{name}-0.1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        lines = [f"{use} = {name}:{place}" for use, place in uses.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{USES}]", *lines, ""]))
        (tmp_path / "site" / f"{name}.py").write_text(code)
        offered.cache_clear()

    yield install
    offered.cache_clear()


def test_another_package_adds_a_use_with_a_class_and_a_line(install: Install, run_toy: Run) -> None:
    install("counting_rows", THEIRS, count_rows="CountRows")
    given = ("datamodule.test.lm.uses=[count_rows,loss]", "test_after_training=true", *ONE_STEP)
    metrics = run_toy("job_type=train", *given)
    assert metrics["test/lm/rows"] == 20
    assert "test/lm/loss" in metrics
    assert "val/lm/rows" not in metrics


def test_what_cannot_be_used_is_named_by_whom_it_is_offered(install: Install, run_toy: Run) -> None:
    install("breaks", "raise RuntimeError('no')", broken="Use", twice="Use")
    install("rival", "", twice="Use")
    with pytest.raises(XLMError, match=r"broken of xlm\.uses is breaks:Use of breaks.*RuntimeError: no"):
        run_toy("job_type=train", "datamodule.test.lm.uses=[broken]")
    with pytest.raises(XLMError, match=r"offered by (breaks|rival) .* and (breaks|rival) "):
        run_toy("job_type=train", "datamodule.test.lm.uses=[twice]")
