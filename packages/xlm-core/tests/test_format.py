"""Files of version 1 are read in the words of version 2; those of a later version are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from xlm.core.config.build import make
from xlm.core.config.errors import XLMError
from xlm.core.config.format import ADAMW, COPY_READER, FORMAT_VERSION, RENAMED, SAMPLER, current
from xlm.core.config.recorded import read_config
from xlm.core.saving.checkpoints import FORMAT_KEY
from xlm.core.saving.run_folder import RunFolder

from .conftest import Run

ADAMW_NODE = {"_partial_": True, "lr": 0.1, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.0}
LAST = "checkpoints/last.ckpt"
IDS = "${vocab.pad_id}"


def loaders(*collators: dict[str, Any]) -> dict[str, Any]:
    return {"val": {f"loader{number}": {"collator": node} for number, node in enumerate(collators)}}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a class that moved": (
        {"trainer": {"strategy": {"_target_": "xlm.core.sharding.FSDP2"}}},
        {"trainer": {"strategy": {"_target_": "xlm.core.training.sharding.FSDP2"}}},
    ),
    "a data set": (
        {"task": {"source": {"_target_": "datasets.load_dataset", "path": "a/b"}}},
        {"task": {"source": {"_target_": "xlm.core.data.read_rows", "path": "a/b", "local": None}}},
    ),
    "a local copy of a data set": (
        {
            "task": {
                "source": {"_target_": COPY_READER, "path": "/x", "arguments": {"path": "a/b", "name": "c"}}
            }
        },
        {
            "task": {
                "source": {"_target_": "xlm.core.data.read_rows", "path": "a/b", "name": "c", "local": "/x"}
            }
        },
    ),
    "files in place of generated rows": (
        {"task": {"source": {"_target_": COPY_READER, "path": "/x", "arguments": {}}}},
        {"task": {"source": {"_target_": COPY_READER, "path": "/x"}}},
    ),
    "adamw": (
        {"optimizer": {"_target_": "torch.optim.AdamW", **ADAMW_NODE}},
        {"optimizer": {"_target_": "xlm.modules.FusedAdamW", **ADAMW_NODE}},
    ),
    "an AdamW of the user's": (
        {"optimizer": {"_target_": "torch.optim.AdamW", "amsgrad": True}},
        {"optimizer": {"_target_": "torch.optim.AdamW", "amsgrad": True}},
    ),
    "references to what has moved": (
        {
            "model": {"_target_": "xlm_mlm.MLM", "vocab_size": 9, "d_model": 8, "d_ff": "${model.d_model}"},
            "predictor": {"_target_": "xlm_mdlm.MDLMPredictor", "schedule": {"_target_": "a.B", "eps": 0.1}},
            "loss": {"eps": "${oc.select:predictor.schedule.eps,0}", "width": ["${model.d_models}"]},
        },
        {
            "noise": {"_target_": "a.B", "eps": 0.1},
            "model": {
                "_target_": "xlm_mlm.MLM",
                "vocab_size": 9,
                "trunk": {
                    "_target_": "xlm.modules.RotaryTransformer",
                    "vocab_size": 9,
                    "d_model": 8,
                    "d_ff": "${model.trunk.d_model}",
                },
                "prompt_sees_target": True,
            },
            "predictor": {
                "_target_": "xlm_mdlm.MDLMPredictor",
                "schedule": "${noise}",
                "constraint": None,
            },
            "loss": {"eps": "${oc.select:noise.eps,0}", "width": ["${model.d_models}"]},
        },
    ),
    "a second schedule that differs": (
        {
            "predictor": {
                "_target_": "xlm_flexmdm.FlexMDMPredictor",
                "interpolant": {"insertion": {"_target_": "a.B"}, "unmasking": {"_target_": "a.C"}},
            }
        },
        {
            "noise": {"_target_": "a.B"},
            "predictor": {
                "_target_": "xlm_flexmdm.FlexMDMPredictor",
                "interpolant": {"insertion": "${noise}", "unmasking": {"_target_": "a.C"}},
                "quota": "hazard",
                "tau": None,
                "gamma": None,
            },
        },
    ),
    "an argument in which one collator differs": (
        {
            "datamodule": loaders(
                {"_target_": "xlm_ilm.ILMCollator", "pad_id": IDS, "max_length": 4},
                {"_target_": "xlm_ilm.ILMPromptCollator", "pad_id": IDS, "max_length": 5},
            )
        },
        {
            "datamodule": {
                **loaders(
                    {
                        "_target_": "xlm_ilm.ILMCollator",
                        "pad_id": "${datamodule.collator.pad_id}",
                        "max_length": 4,
                    },
                    {
                        "_target_": "xlm_ilm.ILMPromptCollator",
                        "pad_id": "${datamodule.collator.pad_id}",
                        "max_length": 5,
                    },
                ),
                "collator": {"pad_id": IDS},
            }
        },
    ),
    "a family of the user's": (
        {
            "model": {"_target_": "mine.Network", "d_model": 8},
            "predictor": {"_target_": "mine.Predictor", "schedule": {"_target_": "mine.Schedule"}},
            "datamodule": loaders({"_target_": "mine.Collator", "pad_id": IDS}),
        },
        {
            "model": {"_target_": "mine.Network", "d_model": 8},
            "predictor": {"_target_": "mine.Predictor", "schedule": {"_target_": "mine.Schedule"}},
            "datamodule": loaders({"_target_": "mine.Collator", "pad_id": IDS}),
        },
    ),
    "what makes no sense": (
        {
            "model": [{"_target_": 3}],
            "predictor": "none",
            "datamodule": {"train": 1, "val": {"lm": None}},
            "optimizer": {"_target_": ["a"]},
        },
        {
            "model": [{"_target_": 3}],
            "predictor": "none",
            "datamodule": {"train": 1, "val": {"lm": None}},
            "optimizer": {"_target_": ["a"]},
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_version_1_in_the_words_of_this_one(name: str) -> None:
    old, new = CASES[name]
    old = {"format_version": 1, **old}
    before = yaml.safe_dump(old)
    assert current(old, "old") == {"format_version": FORMAT_VERSION, "from": None, "noise": None, **new}
    assert yaml.safe_dump(old) == before


SAMPLERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "any order": ({"order": "random", "num_steps": None, "schedule": "uniform"}, {"rule": "any_order"}),
    "steps": (
        {"order": "margin", "num_steps": 4, "schedule": "cosine"},
        {"rule": "confidence", "rank": "margin", "num_steps": 4, "schedule": "cosine"},
    ),
    "threshold": (
        {"order": "top_prob", "min_confidence": 0.9, "max_uncertainty": None},
        {"rule": "threshold", "rank": "top_prob", "tau": 0.9},
    ),
    "entropies": (
        {"order": "entropy", "max_uncertainty": 0.5},
        {"rule": "entropy_bound", "rank": "entropy", "gamma": 0.5},
    ),
    "uncertainties": (
        {"order": "top_prob", "max_uncertainty": 0.5},
        {"rule": "entropy_bound", "rank": "top_prob", "gamma": 0.5, "uncertainty": "rank"},
    ),
    "Ancestral": ({"num_steps": 4}, {"rule": "ancestral", "num_steps": 4}),
    "samplers_mdlm.Ancestral": ({}, {"rule": "ancestral", "num_steps": 128}),
    "FirstHitting": ({}, {"rule": "first_hitting"}),
    "Remasking": ({"rule": "rescale"}, {"rule": "remdm_rescale", "num_steps": 128, "eta": 0.02}),
    "ConfidenceOrder": ({"num_steps": 3}, {"rule": "confidence", "rank": "margin", "num_steps": 3}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_version_2_are_rules(name: str) -> None:
    arguments, parts = SAMPLERS[name]
    if name[0].isupper() or "." in name:
        old = {"_target_": "xlm_mdlm.MDLMPredictor", "sampler": {"_target_": f"xlm_mdlm.{name}", **arguments}}
        sampler = {**SAMPLER, "stop": "ended", **parts}
        new = {"_target_": "xlm_mdlm.MDLMPredictor", "sampler": sampler, "constraint": None}
    else:
        old = {"_target_": "xlm_mlm.MLMPredictor", "top_k": 3, **arguments}
        sampler = {**SAMPLER, "stop": "filled", **parts}
        new = {"_target_": "xlm_mlm.MLMPredictor", "top_k": 3, "sampler": sampler, "constraint": None}
    expected = {"format_version": FORMAT_VERSION, "predictor": new}
    assert current({"format_version": 2, "predictor": old}, "old") == expected
    assert current({"format_version": 2, "predictor": new}, "new")["predictor"] == new
    assert make({**SAMPLER, **parts}, "predictor.sampler") is not None


def test_prompts_of_version_2_see_their_targets() -> None:
    model = {"_target_": "xlm_ilm.ILM", "vocab_size": 9}
    found = current({"format_version": 2, "model": model, "task": {"models": [model]}}, "old")
    assert found["model"] == {**model, "prompt_sees_target": True} == found["task"]["models"][0]
    assert current({"format_version": FORMAT_VERSION, "model": model}, "new")["model"] == model


def test_references_to_a_sampler_follow_it() -> None:
    old = {
        "format_version": 2,
        "predictor": {"_target_": "xlm_mlm.MLMPredictor", "num_steps": 4},
        "task": {"steps": "${predictor.num_steps}"},
    }
    assert current(old, "old")["task"]["steps"] == "${predictor.sampler.num_steps}"


@pytest.mark.parametrize(("order", "rank"), [("position", "left_to_right"), ("margin", "margin")])
def test_the_order_of_masks_is_a_rank(order: str, rank: str) -> None:
    predictor = {"_target_": "xlm_flexmdm.FlexMDMPredictor", "quota": "hazard", "tau": None, "gamma": None}
    old = {
        "format_version": 3,
        "predictor": {**predictor, "order": order},
        "task": {"order": "${predictor.order}"},
    }
    expected = {"format_version": FORMAT_VERSION, "predictor": {**predictor, "rank": rank}}
    assert current(old, "old") == {**expected, "task": {"order": "${predictor.rank}"}}
    assert current({**old, "format_version": 2}, "old") == current(old, "old")


def test_a_config_of_this_version_is_left_as_it_is() -> None:
    for version in ({"format_version": FORMAT_VERSION}, {}):
        config = {**version, "optimizer": {"_target_": "torch.optim.AdamW", **ADAMW_NODE}}
        assert current(config, "new") == config


@pytest.mark.parametrize("target", [*RENAMED.values(), *(now for now, _ in ADAMW.values())])
def test_the_table_names_what_there_is(target: str) -> None:
    from hydra.utils import get_object

    assert callable(get_object(target))


@pytest.mark.parametrize("version", [0, True, None, "1", 1.0])
def test_a_version_that_is_none_is_refused(version: object) -> None:
    with pytest.raises(XLMError, match=r"old: its format_version is .*, not a number from 1 to 4"):
        current({"format_version": version}, "old")


def rewrite(folder: Path, *changes: tuple[str, str]) -> None:
    text = (folder / "config.yaml").read_text("utf-8")
    for new, old in changes:
        assert new in text
        text = text.replace(new, old)
    (folder / "config.yaml").write_text(text, "utf-8")


def make_older(folder: Path) -> None:
    """Turn a run into one that version 1 has left."""
    rewrite(
        folder,
        (f"format_version: {FORMAT_VERSION}", "format_version: 1"),
        ("xlm.core.training.callbacks.", "xlm.core.callbacks."),
        ("xlm.core.training.lr_schedules.", "xlm.core.lr_schedules."),
        ("xlm.modules.FusedAdamW", "torch.optim.AdamW"),
        ("noise: null\n", ""),
        ("from: null\n", ""),
    )
    for path in (folder / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        assert content.pop(FORMAT_KEY) == FORMAT_VERSION
        del content["xlm_origin"]
        content[FORMAT_KEY] = 1
        content["optimizer_states"][0]["param_groups"][0]["fused"] = None
        torch.save(content, path)


@pytest.fixture
def old(run_toy: Run, tmp_path: Path) -> Path:
    """The folder of a run of 10 steps by version 1."""
    run_toy("job_type=train", "trainer.max_steps=10")
    folder = tmp_path / "runs" / "toy"
    make_older(folder)
    return folder


def test_a_run_of_version_1_goes_on_like_one_of_version_2(
    old: Path, run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_toy("job_type=train", "trainer.max_steps=10", "job_name=new")
    for name in ("toy", "new"):
        capsys.readouterr()
        run_toy("job_type=train", "trainer.max_steps=20", f"job_name={name}")
        assert "step 10" in " ".join(capsys.readouterr().out.split())
    contents = [torch.load(tmp_path / "runs" / name / LAST, weights_only=True) for name in ("toy", "new")]
    assert [content[FORMAT_KEY] for content in contents] == [FORMAT_VERSION] * 2
    assert torch.equal(*(content["state_dict"]["model.bias"] for content in contents))
    assert yaml.safe_load((old / "config.yaml").read_text("utf-8"))["format_version"] == FORMAT_VERSION


JOBS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "eval": lambda old: ("job_type=eval", "job_name=other", f"ckpt_path={old / LAST}"),
    "generate": lambda old: ("job_type=generate", f"ckpt_path={old / LAST}"),
    "export": lambda old: ("job_type=export",),
    "fork": lambda old: ("job_type=train", "job_name=other", f"from={old}", "trainer.max_steps=12"),
}


@pytest.mark.parametrize("job", JOBS)
def test_jobs_take_a_run_of_version_1(job: str, old: Path, run_toy: Run) -> None:
    run_toy(*JOBS[job](old), "trust_remote_code=true")


def test_a_run_of_a_later_version_is_refused(run_toy: Run, tmp_path: Path) -> None:
    run_toy("job_type=train", "trainer.max_steps=10")
    folder = tmp_path / "runs" / "toy"
    rewrite(folder, ("format_version: 4", "format_version: 5"))
    with pytest.raises(XLMError, match=r"toy/config\.yaml has format version 5.*Update xlm-core"):
        run_toy("job_type=train", "trainer.max_steps=20")
    with pytest.raises(XLMError, match="format version 5"):
        RunFolder(folder).read_config()
    with pytest.raises(XLMError, match="The config of x has format version 5"):
        read_config(folder / "config.yaml", "The config of x")
