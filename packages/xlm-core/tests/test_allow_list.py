"""Hostile configs: what a downloaded config may name, at every place where a name can stand."""

import copy
import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm.core.config.errors import XLMError
from xlm.core.hub import allow_list
from xlm.core.hub.allow_list import LIBRARY_CLASSES, check_names, check_objects, targets
from xlm.core.hub.pushed_config import as_experiment, read

HARMLESS: dict[str, Any] = {
    "task": {"name": "x", "source": {"_target_": "datasets.load_dataset", "path": "user/name"}},
    "model": {"_target_": "torch.optim.AdamW", "width": "${vocab.size}", "sizes": [1, 2.5, None, True]},
    "loss": {"time": "${oc.select:model.time_conditioning,false}"},
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True},
}
EVIL = {"_target_": "os.system", "command": "true"}
Change = Callable[[dict[str, Any]], object]

PLACES: dict[str, Change] = {
    "slot": lambda config: config.update(model=EVIL),
    "argument": lambda config: config["model"].update(inner=EVIL),
    "deep": lambda config: config["model"].update(a={"b": {"c": EVIL}}),
    "list": lambda config: config["model"]["sizes"].append(EVIL),
    "list of lists": lambda config: config["model"].update(sizes=[[[EVIL]]]),
    "inside a source": lambda config: config["task"]["source"].update(name=EVIL),
    "among files": lambda config: config["task"]["source"].update(data_files=EVIL),
    "a list of files": lambda config: config["task"]["source"].update(data_files={"train": [EVIL]}),
    "not a slot": lambda config: config["task"].update(anything=EVIL),
    "data": lambda config: config.update(datamodule={"train": {"lm": {"collator": EVIL}}}),
    "partial": lambda config: config["task"].update(filter={**EVIL, "_partial_": True}),
    "referred to": lambda config: config.update(loss="${predictor}", predictor=EVIL),
}


@pytest.fixture(autouse=True)
def nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} was imported")

    monkeypatch.setattr("hydra.utils.get_object", refuse)


def test_a_harmless_config_passes() -> None:
    check_names(HARMLESS, "a friend")


@pytest.mark.parametrize("place", PLACES)
def test_a_class_that_nobody_declared_is_refused_wherever_it_stands(place: str) -> None:
    config = copy.deepcopy(HARMLESS)
    PLACES[place](config)
    with pytest.raises(XLMError, match=r"'os\.system' is not allowed") as error:
        check_names(config, "hf://a/b")
    assert "hf://a/b" in str(error.value)
    assert "trust_remote_code=true" in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "hydra.utils.get_method",
        "hydra.utils.instantiate",
        "torch.load",
        "torch.optim.adamw.os.system",
        "xlm.core.training.lr_schedules.math.exp",
        "xlm.core.command.compose.main",
        "torch.optim.AdamW.__init__.__globals__",
        "torch.optim.LBFGS",
        " torch.optim.AdamW",
        "torch.optim.adamw",
        "",
        "${model._target_}",
        None,
        ["torch.optim.AdamW"],
        {"_target_": "torch.optim.AdamW"},
    ],
)
def test_names_are_compared_whole(name: object) -> None:
    with pytest.raises(XLMError, match="is not allowed"):
        check_names({"model": {"_target_": name}}, "x")


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "${oc.env:HF_TOKEN,none}",
        "a ${oc.decode:${oc.env:HOME}} b",
        "${oc.select:${oc.env:HOME}}",
        "${oc.create:{_target_: os.system}}",
        "${hydra:runtime.cwd}",
        "${model.${oc.env:HOME}}",
        "$${model}{oc.env:HOME}",
        "\\${oc.env:HOME}",
        "${ oc.env:HOME }",
        "${oc.env:HOME",
        "${vocab.size}{oc.env:HOME}",
        "${vocab.size}${vocab.size}",
        "${oc.select:vocab.size,${oc.env:HOME}}",
        "${oc.select:vocab.size,'a'}",
        "${.size}",
        "${..loss}",
        "${}",
        "${vocab[size]}",
        "${oc.deprecated:vocab.size}",
        "${vocab.size}\n",
        "${datamodule.cache_dir}/../x",
        "${datamodule.cache_dir}x",
        "x${datamodule.cache_dir}/x",
    ],
)
def test_texts_may_refer_to_keys_only(text: str) -> None:
    for config in ({"model": {"name": text}}, {"model": {"names": ["a", text]}}):
        with pytest.raises(XLMError, match="more than a reference to another key"):
            check_names(config, "x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"a": "${model.b}", "b": "${model.a}"}}, "cyclic"),
        ({"model": "${loss}", "loss": {"model": "${model}"}}, "cyclic"),
        ({"model": {"a": "${model}"}}, "cyclic"),
        ({"a": {str(n): [f"${{a.{n + 1}}}"] * 10 if n < 9 else 1 for n in range(10)}}, "unbounded"),
        ({"model": "${loss.a}", "loss": "${model.b}"}, "cyclic"),
        ({"model": {"a": "${loss.b}"}}, r"refers to loss\.b, which it does not have"),
        ({"model": {"a": "${output_dir}"}}, r"refers to output_dir, which it does not have"),
        ({"model": {"a": [1], "b": "${model.a.1}"}}, r"refers to model\.a\.1, which"),
        ({"loss": {"_target_": "${model.a}"}, "model": {"a": "torch.optim.SGD"}}, "is not allowed"),
    ],
)
def test_references_lead_to_something_and_end(config: dict[str, Any], message: str) -> None:
    with pytest.raises(XLMError, match=message) as error:
        check_names(config, "x")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_"])
def test_what_only_hydra_reads_is_refused(key: str) -> None:
    for place in ("a", "data_files"):
        for node in ({}, {"_target_": "torch.optim.SGD"}):
            with pytest.raises(XLMError, match=f"model.{place}: {key} is not allowed"):
                check_names({"model": {place: {**node, key: []}}}, "x")


def test_functions_are_made_for_slots_that_take_them() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": True}
    for slot in ("source", "filter", "preprocess"):
        check_names({"task": {slot: node, "tokenizer": {"source": f"${{task.{slot}}}"}}}, "x")
    check_names({"model": {**node, "_partial_": False}}, "x")
    for config in ({"model": node}, {"optimizer": [node]}, {"optimizer": {**node, "_partial_": "true"}}):
        with pytest.raises(XLMError, match="is only for slots that take a function"):
            check_names(config, "x")


def test_every_problem_is_named_with_its_place() -> None:
    config = {"model": EVIL, "loss": {"inner": [{"_target_": "a.b"}]}, "task": {"name": "${oc.env:HOME}"}}
    with pytest.raises(XLMError) as error:
        check_names(config, "x")
    for line in (
        "model._target_: 'os.system'",
        "loss.inner[0]._target_: 'a.b'",
        "task.name: '${oc.env:HOME}'",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("key", [1, True, None])
def test_keys_are_texts(key: object) -> None:
    with pytest.raises(XLMError, match="is not a text"):
        check_names({"model": {key: 1}}, "x")


def test_objects_have_to_be_the_declared_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    check_objects({"a": [{"_target_": name} for name in LIBRARY_CLASSES]}, "the libraries")
    names = {"xlm.core.command.compose.sys.exit": "xlm.core.command.compose.exit"}
    monkeypatch.setattr(allow_list, "allowed_names", lambda: names)
    with pytest.raises(XLMError, match=r"which is sys\.exit: rejected"):
        check_objects({"a": {"_target_": "xlm.core.command.compose.sys.exit"}}, "x")


def test_declared_objects_call_themselves_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    points = entry_points(group=allow_list.ENTRY_POINT_GROUP)
    own = [{"_target_": point.name} for point in points if point.name.startswith("xlm.core.")]
    assert own
    check_objects({"a": own}, "this package")


def write(folder: Path, config: object) -> Path:
    file = folder / "xlm_config.yaml"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def test_only_what_describes_the_model_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydra.utils.get_object", lambda name: None)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr("xlm.core.hub.pushed_config.check_objects", lambda config, origin: None)  # pyright: ignore[reportUnknownLambdaType]
    config = {
        **HARMLESS,
        "datamodule": {"cache_dir": "/theirs", "num_proc": 99, "batch_size": 3},
        "trainer": {"max_steps": 7, "strategy": EVIL, "plugins": [EVIL]},
        "callbacks": {"evil": EVIL},
        "logger": {"evil": EVIL},
        "hydra": {"launcher": EVIL, "callbacks": {"evil": EVIL}},
        "defaults": [{"override /model": "other"}],
        "trust_remote_code": True,
        "output_dir": "/theirs",
        "ckpt_path": "hf://their/other",
    }
    taken = read(write(tmp_path, config), "x")
    expected = {**HARMLESS, "loss": {"time": False}, "datamodule": {"batch_size": 3}}
    assert taken == {**expected, "trainer": {"max_steps": 7}}
    assert not {"os.system"} & {target for _, target in targets(taken)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system [true]", "tags are not allowed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]", "aliases are not allowed"),
        ("- a", "is not a config"),
        ("model: {", "cannot be read as YAML"),
        ("", "is not a config"),
        ("a: " + "x" * 2**20, "up to 0.25 MiB"),
        ("model: {x: 2020-01-01}", "a date is not a plain value"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(XLMError, match=message):
        read(write(tmp_path, text), "x")


def test_trust_is_given_on_the_command_line_only(tmp_path: Path) -> None:
    config = {"model": EVIL, "trust_remote_code": True}
    write(tmp_path, config)
    arguments = ["job_type=generate", "job_name=x", f"ckpt_path={tmp_path}"]
    with pytest.raises(XLMError, match=r"os\.system"), as_experiment(arguments):
        pass
    with as_experiment([*arguments, "trust_remote_code=true"]) as (extended, folder):
        assert folder is not None
        written = (folder / "experiment" / f"{extended[-1].partition('=')[2]}.yaml").read_text()
        assert yaml.safe_load(written)["model"] == EVIL


@pytest.mark.parametrize("saved", [None, "/theirs"])
def test_the_tokenizer_of_the_model_is_used_whatever_the_data(tmp_path: Path, saved: str | None) -> None:
    node = {"_target_": "torch.optim.SGD", "saved": saved}
    write(tmp_path, {"task": {"tokenizer": node}, "loss": {"saved": saved}})
    with as_experiment([f"ckpt_path={tmp_path}", "trust_remote_code=true"]) as (extended, folder):
        assert folder is not None
        name = extended[-1].partition("=")[2]
        written = yaml.safe_load((folder / "experiment" / f"{name}.yaml").read_text())
    assert written["task"]["tokenizer"]["saved"] == str(tmp_path)
    assert written["loss"]["saved"] == saved


def test_an_experiment_on_the_command_line_comes_first(tmp_path: Path) -> None:
    write(tmp_path, {"model": EVIL})
    for group in ("experiment", "recipe", "model", "task", "model_type"):
        arguments = [f"ckpt_path={tmp_path}", f"{group}=mine"]
        with as_experiment(arguments) as (unchanged, folder):
            assert unchanged == arguments
            assert folder is None
