"""Nodes that several slots share: the noise, and arguments of all collators."""

from pathlib import Path
from typing import Any, cast

import pytest
from omegaconf import OmegaConf

from xlm.core.config.errors import XLMError

from .running import composed

FAMILIES = ("arlm", "ilm", "mlm", "mdlm", "flexmdm")
LENGTH = {"mlm": "target_length", "mdlm": "target_length"}
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loader", ["train.lm", "val.lm", "test.prediction"])
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


@pytest.mark.parametrize("family", ["arlm", "ilm"])
def test_a_family_without_noise_refuses_one(family: str) -> None:
    with pytest.raises(XLMError, match=r"noise: xlm\.modules\.Cosine is unused"):
        composed(f"star_easy_{family}", "job_type=train", "job_name=x", "noise=cosine")
