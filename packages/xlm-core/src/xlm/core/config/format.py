"""The versions of what XLM writes, and the tables that translate earlier ones.

Version 2 differs from version 1 in names and places only: classes of the core moved, the noise schedule and
the arguments that all collators share became nodes of their own, and a network became a trunk and its heads.
Version 3 differs from version 2 in the samplers of two families, which became combinations of shared parts,
in networks that say whether a prompt sees its target, and in predictors with more options.
Version 4 differs from version 3 in one name, the order of a sampler of FlexMDM, which is its rank as in
other families, and in predictors with a constraint. What earlier versions wrote is read in the words of
version 4, so nothing else has to know of it.

The tables are closed. They name classes of families because old files do; later families have no place there.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from xlm.core.config.errors import XLMError

FORMAT_VERSION = 4
"""Version of configs, checkpoints and exported folders that are written."""
KEY = "format_version"
TARGET = "_target_"
READER = "xlm.core.data.read_rows"
COPY_READER = "xlm.core.data.read_local_copy"

RENAMED = {
    **{
        f"xlm.core.callbacks.{name}": f"xlm.core.training.callbacks.{name}"
        for name in (
            "EMA", "GradientNorm", "LastCheckpoint", "Samples", "Throughput", "TrainingProgress",
            "ValidationReport",
        )
    },
    "xlm.core.lr_schedules.WarmupSchedule": "xlm.core.training.lr_schedules.WarmupSchedule",
    "xlm.core.optimizers.MuonWithAdamW": "xlm.modules.MuonWithAdamW",
    "xlm.core.sharding.FSDP2": "xlm.core.training.sharding.FSDP2",
    "datasets.load_dataset": READER,
}  # fmt: skip
"""Classes by their names in version 1."""

ADAMW = {
    "torch.optim.AdamW": (
        "xlm.modules.FusedAdamW",
        {TARGET, "_partial_", "lr", "betas", "eps", "weight_decay"},
    )
}
"""What ``optimizer=adamw`` made in version 1, what it makes now, and the arguments of both. A node with other
arguments was the user's choice and stays."""

NEW = {"from": None, "noise": None}
"""Keys that version 1 did not have."""

ADDED = {
    "xlm_mlm.MLMCollator": {"schedule": "${noise}"},
    "xlm_flexmdm.FlexMDMLoss": {"mask_id": "${vocab.mask_id}"},
    "datasets.load_dataset": {"local": None},
    "xlm.tasks.safe.published_rows": {"local": None},
    "xlm.tasks.sudoku_extreme.published_rows": {"local": None},
}
"""Arguments that the class has in every config of version 2."""

ADDED_IN_3: dict[str, dict[str, Any]] = {
    "xlm_ilm.ILM": {"prompt_sees_target": True},
    "xlm_mlm.MLM": {"prompt_sees_target": True},
    "xlm_mdlm.MDLMRotary": {"prompt_sees_target": True},
    "xlm_mlm.MLMPredictor": {"constraint": None},
    "xlm_mdlm.MDLMPredictor": {"constraint": None},
    "xlm_ilm.ILMPredictor": {"rank": "drawn", "quota": "count", "tau": None, "gamma": None},
    "xlm_flexmdm.FlexMDMPredictor": {"quota": "hazard", "tau": None, "gamma": None},
}
"""Arguments that the class has in every config of version 3."""

ADDED_IN_4: dict[str, dict[str, Any]] = {
    "xlm_arlm.ARLMPredictor": {"constraint": None},
    "xlm.modules.samplers.compose": {"speculate": None},
}
"""Arguments that the class has in every config of version 4."""

NEW_RANKS = {"position": "left_to_right"}
"""Values of ``order`` in a sampler of FlexMDM in version 3 that have another name as a ``rank``."""

NOISE = {
    "xlm_mdlm.MDLMPredictor": ("schedule",),
    "xlm_flexmdm.FlexMDMPredictor": ("interpolant.insertion", "interpolant.unmasking"),
}
"""Where a predictor held its noise schedules in version 1. In version 2 the first is ``noise``, and others
that are equal refer to it."""

SHARED = {
    "xlm_arlm": ("pad_id", "bos_id", "eos_id", "max_length"),
    "xlm_mlm": ("pad_id", "mask_id", "bos_id", "eos_id", "target_length"),
    "xlm_mdlm": ("pad_id", "mask_id", "bos_id", "eos_id", "target_length"),
    "xlm_ilm": ("pad_id", "cls_id", "bos_id", "max_length"),
    "xlm_flexmdm": ("pad_id", "mask_id", "bos_id", "max_length"),
}
"""Arguments of a family's collators that are written once, in ``datamodule.collator``, in version 2."""

SIZES = (
    "d_model", "num_layers", "num_heads", "d_condition", "d_ff", "dropout", "activation", "rotary_dim",
)  # fmt: skip
"""Arguments of a network in version 1 that are those of its trunk in version 2."""
ROTARY = {TARGET: "xlm.modules.RotaryTransformer"}
DIT = {TARGET: "xlm.modules.DiT", "d_condition": 128}
EMBEDDING = {
    TARGET: "xlm.modules.TimestepEmbedding",
    "d_condition": "${oc.select:model.trunk.d_condition,128}",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "xlm_arlm.ARLM": {"trunk": {**ROTARY, "causal": True}},
    "xlm_mlm.MLM": {"trunk": ROTARY},
    "xlm_mdlm.MDLMRotary": {"trunk": ROTARY},
    "xlm_mdlm.MDLMDiT": {"noise_embedding": EMBEDDING, "trunk": DIT},
    "xlm_ilm.ILM": {"trunk": ROTARY, "d_ff": "${oc.select:model.trunk.d_ff,null}"},
    "xlm_flexmdm.FlexMDM": {"time_embedding": EMBEDDING, "trunk": DIT},
}
"""Arguments of a network in version 2 in place of the sizes; a size only where the network had it."""

SAMPLER: dict[str, Any] = {
    TARGET: "xlm.modules.samplers.compose",
    **dict.fromkeys((
        "rule", "rank", "quota", "revise", "num_steps", "schedule", "tau", "gamma", "uncertainty", "eps",
        "evaluations", "fallback", "eta", "t_on", "t_off", "alpha_on", "speculate",
    )),
}  # fmt: skip
"""A sampler in version 4."""
UNMASKING = {
    "order": "rank", "num_steps": "num_steps", "schedule": "schedule", "min_confidence": "tau",
    "max_uncertainty": "gamma",
}  # fmt: skip
"""Arguments of ``xlm_mlm.MLMPredictor`` in version 2, and those of its sampler in version 4."""

REFERENCE = re.compile(r"(\$\{(?:oc\.select:)?)([\w.]+)")


def check_version(version: object, name: str) -> None:
    """See that a file is of a version that is read here.

    Args:
        version: What stands there.
        name: What the user calls the file, for messages.

    Raises:
        XLMError: If it is none, or a later one.
    """
    if type(version) is not int or version < 1:
        raise XLMError(f"{name}: its {KEY} is {version!r}, not a number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise XLMError(
            f"{name} has format version {version}, this xlm-core reads up to {FORMAT_VERSION}. "
            "Update xlm-core."
        )


def current(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A config that an earlier job has written, as this version writes it.

    Args:
        config: Plain values, of any version; without one it is of this version. It is left as it is.
        name: What the user calls the file, for messages.

    Raises:
        XLMError: If it is of a later version.
    """
    version = config.get(KEY, FORMAT_VERSION)
    check_version(version, name)
    if version == FORMAT_VERSION:
        return config
    new: dict[str, Any] = {**copy.deepcopy(config), KEY: FORMAT_VERSION}
    moved: dict[str, str] = {}
    if version == 1:
        new = {**NEW, **new}
        for node in _objects(new):
            _rename(node)
        _share_arguments(new)
        moved |= {**_move_noise(new), **_move_sizes(new)}
    for node in _objects(new):
        for key, value in {**ADDED_IN_3, **ADDED_IN_4}.get(node[TARGET], {}).items():
            node.setdefault(key, value)
    _read_by_one_function(new)
    moved |= {**_compose_sampler(_mapping(new, "predictor")), **_rank_masks(_mapping(new, "predictor"))}
    # References are rewritten last: to where a node stands now.
    return cast("dict[str, Any]", _refer(new, moved))


def _objects(node: object) -> Iterator[dict[str, Any]]:
    """The nodes of a config that name a class, from the outside in."""
    if isinstance(node, list):
        for value in cast("list[object]", node):
            yield from _objects(value)
    elif isinstance(node, dict):
        content = cast("dict[str, Any]", node)
        if isinstance(content.get(TARGET), str):
            yield content
        for value in content.values():
            yield from _objects(value)


def _rename(node: dict[str, Any]) -> None:
    """Give a node the present name of its class and the arguments that it has everywhere."""
    target = node[TARGET]
    fused, arguments = ADAMW.get(target, (target, set[str]()))
    node[TARGET] = fused if node.keys() <= arguments else RENAMED.get(target, target)
    for key, value in ADDED.get(target, {}).items():
        node.setdefault(key, value)


def _read_by_one_function(config: dict[str, Any]) -> None:
    """Read a local copy of a data set with the task's own reader; version 1 had one for the copy."""
    source = _mapping(config, "task", "source")
    if source.get(TARGET) == COPY_READER and (arguments := source.pop("arguments", None)):
        config["task"]["source"] = {**source, **arguments, TARGET: READER, "local": source["path"]}


def _share_arguments(config: dict[str, Any]) -> None:
    """Write the arguments in which all collators agree once."""
    data = _mapping(config, "datamodule")
    collators = [
        collator
        for stage in ("train", "val", "test")
        for loader in _mapping(data, stage).values()
        if isinstance(loader, dict) and (collator := _mapping(cast("dict[str, Any]", loader), "collator"))
    ]
    families = {str(collator.get(TARGET)).partition(".")[0] for collator in collators}
    if "collator" in data or len(families) != 1:
        return
    shared: dict[str, Any] = {}
    for key in SHARED.get(families.pop(), ()):
        given = [collator for collator in collators if key in collator]
        if given and all(collator[key] == given[0][key] for collator in given):
            shared[key] = given[0][key]
            for collator in given:
                collator[key] = f"${{datamodule.collator.{key}}}"
    if shared:
        data["collator"] = shared


def _move_noise(config: dict[str, Any]) -> dict[str, str]:
    """Make the noise schedule of the predictor a node of its own; tells where what stands now."""
    predictor = _mapping(config, "predictor")
    moved: dict[str, str] = {}
    for key in NOISE.get(str(predictor.get(TARGET)), ()):
        *above, name = key.split(".")
        holder = _mapping(predictor, *above)
        node = _mapping(holder, name)
        if node and config["noise"] in (None, node):
            config["noise"], holder[name] = node, "${noise}"
            moved[f"predictor.{key}"] = "noise"
    return moved


def _move_sizes(config: dict[str, Any]) -> dict[str, str]:
    """Make the sizes of the network those of its trunk; tells where what stands now."""
    model = _mapping(config, "model")
    added = copy.deepcopy(NETWORKS.get(str(model.get(TARGET)), {}))
    if not added or "trunk" in model:
        return {}
    sizes = {key: model.pop(key) for key in SIZES if key in model}
    added = {key: value for key, value in added.items() if key not in SIZES or key in sizes}
    first = {key: model.pop(key) for key in (TARGET, "vocab_size") if key in model}
    trunk = {**added["trunk"], "vocab_size": first.get("vocab_size"), **sizes}
    # Weights are drawn in the order of the keys.
    config["model"] = {**first, **added, "trunk": trunk, **model}
    return {f"model.{key}": f"model.trunk.{key}" for key in sizes}


def _compose_sampler(predictor: dict[str, Any]) -> dict[str, str]:
    """Make the sampler of a predictor a combination of parts; tells where what stands now."""
    target = predictor.get(TARGET)
    if target == "xlm_mlm.MLMPredictor" and "sampler" not in predictor:
        old = {key: predictor.pop(key) for key in UNMASKING if key in predictor}
        predictor["sampler"] = mlm_sampler(old)
        return {f"predictor.{key}": f"predictor.sampler.{UNMASKING[key]}" for key in old}
    if target == "xlm_mdlm.MDLMPredictor" and isinstance(predictor.get("sampler"), dict):
        predictor["sampler"] = mdlm_sampler(predictor["sampler"])
    return {}


def _rank_masks(predictor: dict[str, Any]) -> dict[str, str]:
    """Name the order of the masks of FlexMDM as other families do; tells where what stands now."""
    if predictor.get(TARGET) != "xlm_flexmdm.FlexMDMPredictor" or "order" not in predictor:
        return {}
    order = predictor.pop("order")
    predictor["rank"] = NEW_RANKS.get(order, order)
    return {"predictor.order": "predictor.rank"}


def mlm_sampler(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler of ``xlm_mlm.MLMPredictor`` with these arguments of version 2."""
    order = arguments.get("order", "random")
    tau, gamma = arguments.get("min_confidence"), arguments.get("max_uncertainty")
    sampler = {**SAMPLER, "stop": "filled", "rule": "any_order" if order == "random" else "confidence"}
    if order != "random":
        sampler["rank"] = order
    if tau is not None:
        sampler |= {"rule": "threshold", "tau": tau}
    elif gamma is not None:
        sampler |= {"rule": "entropy_bound", "gamma": gamma}
        sampler["uncertainty"] = None if order == "entropy" else "rank"
    schedule = arguments.get("schedule", "uniform")
    return {
        **sampler,
        "num_steps": arguments.get("num_steps"),
        "schedule": None if schedule == "uniform" else schedule,
    }


def mdlm_sampler(node: dict[str, Any]) -> dict[str, Any]:
    """A sampler of ``xlm_mdlm`` in version 2; another one as it is."""
    package, _, name = str(node.get(TARGET)).rpartition(".")
    if package.partition(".")[0] != "xlm_mdlm":
        return node
    num_steps = node.get("num_steps", None if name == "ConfidenceOrder" else 128)
    sampler = {**SAMPLER, "stop": "ended", "num_steps": num_steps}
    match name:
        case "Ancestral":
            return {**sampler, "rule": "ancestral"}
        case "FirstHitting":
            return {**sampler, "rule": "first_hitting", "num_steps": None}
        case "Remasking":
            return {**sampler, "rule": f"remdm_{node.get('rule', 'cap')}", "eta": node.get("eta", 0.02)}
        case "ConfidenceOrder":
            return {**sampler, "rule": "confidence", "rank": node.get("kind", "margin")}
        case _:
            return node


def _refer(node: object, moved: dict[str, str]) -> object:
    """``node`` with its references to keys that have moved."""

    def place(match: re.Match[str]) -> str:
        names = match[2].split(".")
        for cut in range(len(names), 0, -1):
            if (now := moved.get(".".join(names[:cut]))) is not None:
                return match[1] + ".".join([now, *names[cut:]])
        return match[0]

    if isinstance(node, dict):
        return {key: _refer(value, moved) for key, value in cast("dict[str, object]", node).items()}
    if isinstance(node, list):
        return [_refer(value, moved) for value in cast("list[object]", node)]
    return REFERENCE.sub(place, node) if isinstance(node, str) else node


def _mapping(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping below ``keys``, an empty one where there is none."""
    for key in keys:
        value: object = node.get(key)
        node = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return node
