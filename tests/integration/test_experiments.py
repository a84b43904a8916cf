"""Every experiment is composed, checked and instantiated, and nodes that slots share reach all of them."""

import inspect
import json
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf

from xlm.core.command.discovery import providers
from xlm.core.config.errors import XLMError

from .published import FEW_STEPS, Published
from .running import EXPERIMENTS, FAMILIES, composed, run_fast

SMALL_NETWORK = ("model.trunk.d_model=32", "model.trunk.num_layers=2", "model.trunk.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"


def in_turn(data_sets: tuple[str, ...], number: int) -> list[str]:
    """Experiments that give each family ``number`` of the data sets, the next ones for the next family."""
    return [
        f"{data_sets[(place + more) % len(data_sets)]}_{family}"
        for place, family in enumerate(FAMILIES)
        for more in range(number)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: the families share the prepared rows of a task."""
    return tmp_path_factory.mktemp("cache")


def test_there_are_experiments() -> None:
    assert {f"star_{level}_ilm" for level in ("tiny", "easy", "medium", "hard")} <= set(EXPERIMENTS)


# The languages share a recipe: each family is instantiated on one, and the files of the others are compared.
LANGUAGES = ("ngram", "hmm", "pcfg")
INSTANTIATED = [name for name in EXPERIMENTS if not name.startswith(tuple(f"{task}_" for task in LANGUAGES))]


@pytest.mark.parametrize("experiment", [*INSTANTIATED, *in_turn(LANGUAGES, 1)])
def test_an_experiment_is_instantiated(
    experiment: str, published: Published, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The network is made on the meta device: its shapes, not its memory."""
    from xlm.core.config.build import make
    from xlm.core.config.checks import check_call
    from xlm.core.training.assembly import make_slots
    from xlm.core.training.run import resolve

    # One cache for all, where a tokenizer that is trained finds itself again.
    cache = f"datamodule.cache_dir={tmp_path_factory.getbasetemp() / 'instantiated'}"
    overrides = published.overrides(experiment)
    run = resolve(composed(experiment, "job_type=train", "job_name=x", cache, *overrides))
    # First, so that the family is imported here: a constant of a module made below would stay on meta.
    for stage, loaders in run.settings.datamodule.loaders.items():
        for name, loader in loaders.items():
            key = f"datamodule.{stage}.{name}.collator"
            check_call(make(loader.collator, key), key, "Collator", "examples")
    with torch.device("meta"):
        slots = make_slots(run)
    assert sum(parameter.numel() for parameter in slots.model.parameters()) > 0
    check_call(slots.loss, "loss", "Loss", "model batch")
    check_call(slots.predictor, "predictor", "Predictor", "model batch seeds", trace=False)
    inspect.signature(make(run.settings.task.source, "task.source"))
    inspect.signature(make(run.settings.task.preprocess, "task.preprocess"))


@pytest.mark.parametrize("task", LANGUAGES[1:])
def test_the_experiment_of_a_language_is_that_of_ngram_with_another_task(task: str) -> None:
    found = providers("experiment")
    for family in FAMILIES:
        folder = cast("Path", found[f"{task}_{family}"][0].folder)
        text = (folder / "experiment" / f"{task}_{family}.yaml").read_text()
        assert text == f"# @package _global_\ndefaults: [ngram_{family}, override /task: {task}, _self_]\n"
    job = ("job_type=train", "job_name=x")
    assert composed(f"{task}_ilm", *job) == composed("ngram_ilm", *job, f"task={task}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_evaluates_and_generates(family: str, tmp_path: Path, cache: Path) -> None:
    experiment = f"star_tiny_{family}"
    few = (FEW_ROWS, *FEW_STEPS.get(family, ()), *SMALL_NETWORK)
    trained = run_fast(tmp_path, cache, "train", experiment, *few)
    assert 0 <= trained["test/prediction/exact_match"] <= 1
    assert trained["test/prediction/nfe_per_sequence"] > 0
    assert any(name.endswith("/nll") and value > 0 for name, value in trained.items())
    [curves] = (tmp_path / "fast").glob("csv/version_*/metrics.csv")
    header = curves.read_text().splitlines()[0].split(",")
    terms = {name.removeprefix("train/") for name in header if name.startswith("train/")}
    assert len(terms) > 1
    assert {f"{stage}/lm/{term}" for stage in ("val", "test") for term in terms} <= {*header, *trained}
    evaluated = run_fast(tmp_path, cache, "eval", experiment, *few)
    for metrics in (trained, evaluated):
        assert metrics.pop("test/prediction/seconds_per_sequence") > 0
    assert evaluated == pytest.approx(trained, rel=1e-4)
    drawn = ("predictor.temperature=1.0", "show_probabilities=true")
    run_fast(tmp_path, cache, "generate", experiment, *few, *drawn)
    [written] = (tmp_path / "fast" / "generate").glob("*/predictions.jsonl")
    records = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(records) == 8
    assert all(record["reference_ids"] for record in records)
    for line in (written.parent / "traces.jsonl").read_text().splitlines():
        record = json.loads(line)
        tokens = record["steps"][-1]["tokens"] if record["steps"] else []  # an empty text has no edit
        assert " ".join(tokens) == record["text"]
        edits = [edit for step in record["steps"] if step["step"] > 0 for edit in step["edits"]]
        assert all(edit["log_prob"] <= 0 for edit in edits if edit["kind"] in ("insert", "write"))


@pytest.mark.parametrize("experiment", in_turn(("star_easy", "star_medium", "star_hard"), 1))
def test_a_star_experiment_trains(experiment: str, tmp_path: Path, cache: Path) -> None:
    few = (FEW_ROWS, *FEW_STEPS.get(experiment.rpartition("_")[2], ()), *SMALL_NETWORK)
    run_fast(tmp_path, cache, "train", experiment, *few, "trainer.precision=32-true")
    assert (tmp_path / "fast" / "predictions.jsonl").exists()


ONE_BATCH = (
    "model.trunk.d_model=16",
    "model.trunk.num_layers=1",
    "model.trunk.num_heads=1",
    "trainer.precision=32-true",
    "trainer.accumulate_grad_batches=1",
    "trainer.max_steps=2",
    "datamodule.batch_size=4",
    "datamodule.train.lm.num_workers=0",
    *(
        f"datamodule.{stage}.{loader}.max_rows=4"
        for stage in ("val", "test")
        for loader in ("lm", "prediction")
    ),
)


PUBLISHED = ("lm1b", "openwebtext_documents", "lm1b_packed", "openwebtext", "text_tiny")


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=() if name in in_turn(PUBLISHED, 1) else pytest.mark.slow)
        for name in in_turn(PUBLISHED, 2)
    ],
)
def test_published_data_are_prepared_and_trained_on(
    experiment: str, published: Published, tmp_path: Path, cache: Path
) -> None:
    overrides = [*published.overrides(experiment), *published.few_tokens(experiment), *ONE_BATCH]
    if experiment in in_turn(PUBLISHED, 1):  # the others find the rows in the cache, or train prepares them
        run_fast(tmp_path, cache, "prepare_data", experiment, *overrides)
    results = run_fast(tmp_path, cache, "train", experiment, *overrides)
    # An untrained network is near the uniform distribution: at most the log of the vocabulary.
    assert 0 < results["test/lm/nll_per_token"] < 40
    assert 0 <= results["test/prediction/tokens"] <= 16
    records = [
        json.loads(line) for line in (tmp_path / "fast" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(records) == 4
    assert all(record["prompt_ids"] == record["reference_ids"] == [] for record in records)


LENGTH = {
    "mlm": "target_length",
    "mdlm": "target_length",
    "bd3lm": "max_target_length",
    "udlm": "target_length",
}
JOB = ("job_type=train", "job_name=x")


def collators(family: str, *overrides: str, resolve: bool) -> dict[str, dict[str, Any]]:
    """The node of each loader's collator, by the loader's key."""
    config = composed(f"star_tiny_{family}", *JOB, *overrides)
    data = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=resolve))["datamodule"]
    return {
        f"{stage}.{name}": loader["collator"]
        for stage in ("train", "val", "test")
        for name, loader in data[stage].items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_collators_take_stands_in_one_place(family: str) -> None:
    nodes = list(collators(family, resolve=False).values())
    for key in set.intersection(*map(set, nodes)) - {"_target_"}:
        assert {node[key] for node in nodes} == {f"${{datamodule.collator.{key}}}"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_there_reaches_every_loader(family: str) -> None:
    key = LENGTH.get(family, "max_length")
    nodes = collators(family, f"datamodule.collator.{key}=77", resolve=True)
    assert len(nodes) == 5
    assert {node[key] for node in nodes.values()} == {77}


@pytest.mark.parametrize(
    ("family", "loader"), list(zip(FAMILIES, cycle(["train.lm", "val.lm", "test.prediction"]), strict=False))
)
def test_a_change_for_one_loader_is_refused_with_the_place_for_all(family: str, loader: str) -> None:
    message = rf"datamodule\.{loader}\.collator\.bos_id: got 4 .*: datamodule\.collator\.bos_id=4$"
    with pytest.raises(XLMError, match=message):
        composed(f"star_tiny_{family}", *JOB, f"datamodule.{loader}.collator.bos_id=4")


def test_what_one_loader_has_alone_is_changed_there() -> None:
    nodes = collators("mdlm", "datamodule.train.lm.collator.min_time=0.25", resolve=True)
    assert nodes["train.lm"]["min_time"] == 0.25
    again = "datamodule.train.lm.collator.bos_id=${datamodule.collator.bos_id}"
    assert len(collators("mdlm", again, resolve=True)) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_collator_of_the_loss_is_refused_for_generation(family: str, tmp_path: Path) -> None:
    from xlm.core.training.assembly import assemble
    from xlm.core.training.run import resolve
    from xlm.core.training.slot_checks import check_slots

    config = composed(
        f"star_tiny_{family}",
        "job_type=eval",
        "job_name=x",
        f"datamodule.cache_dir={tmp_path}",
        "datamodule.test.lm.uses=[generation]",
        "task.source.num_rows={train: 4, val: 4, test: 4}",
    )
    harness, datamodule = assemble(resolve(config))
    with pytest.raises(
        XLMError, match=r"^datamodule\.test\.lm\.uses: .*Generation needs a collator of prompts"
    ):
        check_slots(harness, datamodule, stages=("test",))


PLACES = {
    "mlm": ("datamodule.train.lm.collator.schedule",),
    "mdlm": (
        "datamodule.train.lm.collator.schedule",
        "datamodule.test.lm.collator.schedule",
        "predictor.schedule",
    ),
    "bd3lm": ("datamodule.train.lm.collator.schedule", "predictor.schedule"),
    "udlm": (
        "datamodule.train.lm.collator.schedule",
        "datamodule.test.lm.collator.schedule",
        "predictor.schedule",
    ),
    "flexmdm": (
        "datamodule.train.lm.collator.interpolant.insertion",
        "datamodule.test.lm.collator.interpolant.unmasking",
        "predictor.interpolant.insertion",
    ),
}


@pytest.mark.parametrize("family", PLACES)
def test_a_schedule_reaches_every_slot_that_needs_one(family: str) -> None:
    config = composed(f"star_easy_{family}", "job_type=train", "job_name=x", "noise=cosine")
    for key in PLACES[family]:
        node = OmegaConf.select(config, key)
        assert node == {"_target_": "xlm.modules.Cosine", "eps": 0.0}, key


@pytest.mark.parametrize("family", ["arlm", "ilm", "did", "editflow"])
def test_a_family_without_noise_refuses_one(family: str) -> None:
    with pytest.raises(XLMError, match=r"noise: xlm\.modules\.Cosine is unused"):
        composed(f"star_easy_{family}", "job_type=train", "job_name=x", "noise=cosine")
