"""The model card: the model, the metrics of its run, how to use it."""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from xlm.core.config.entry_points import GENERATION
from xlm.core.hub.allow_list import targets

PIPELINE_TAG = "text-generation"
LINE = 90
"""Maximum length of a call in one line."""


@dataclass(frozen=True)
class CardFacts:
    """The content of the card."""

    title: str
    """Name of the model."""
    origin: str
    """The argument of ``from_pretrained``: USER/REPO, or a folder."""
    model: nn.Module
    config: Mapping[str, Any]
    """The training config with the tokenizer's ids filled in, as plain values."""
    package: str | None
    """Distribution and version of the network's class."""
    weights: str
    """Kind of weights: averaged or as trained."""
    step: int | None = None
    """Optimizer steps of the checkpoint, None if not recorded."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    has_tokenizer: bool = False


def make_card(facts: CardFacts) -> ModelCard:
    """The README.md of the repository."""
    ckpt_path = f"hf://{facts.origin}" if "/" in facts.origin else facts.origin
    lines = [
        f"# {facts.title}",
        "",
        *_description(facts),
        "",
        "## Load and generate",
        "",
        *_standalone(facts),
        "",
        "With XLM:",
        "",
        "```bash",
        f"xlm job_type=generate job_name=try ckpt_path={ckpt_path}",
        "```",
        "",
        *_metrics(facts.metrics),
        "## Training",
        "",
        "The whole configuration is in `xlm_config.yaml`.",
    ]
    return ModelCard(f"---\n{_metadata(facts.model)}\n---\n\n" + "\n".join(lines) + "\n")


def _metadata(model: nn.Module) -> str:
    data = ModelCardData()
    if hasattr(model, "generate_model_card"):  # huggingface_hub's mixin: licence, tags, library of the class
        data = cast("ModelCardData", cast("Any", model).generate_model_card().data)
    data.pipeline_tag = PIPELINE_TAG
    data.tags = [*(data.tags or []), "xlm"]
    return data.to_yaml()


def _description(facts: CardFacts) -> Iterator[str]:
    model, task, trainer = facts.model, facts.config["task"], facts.config["trainer"]
    summary = inspect.getdoc(type(model)) or ""
    yield summary.split("\n\n")[0].replace("\n", " ") or f"A {type(model).__name__}."
    yield ""
    rows = {
        "network": f"`{type(model).__module__}.{type(model).__qualname__}`"
        + (f" of {facts.package}" if facts.package else ""),
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "data set": str(task["name"]),
        "optimizer steps": f"{'not recorded' if facts.step is None else f'{facts.step:,}'}, "
        f"{trainer['max_steps']:,} planned",
        "weights": facts.weights,
    }
    yield from _table(("", ""), rows.items())


def _table(head: tuple[str, str], rows: Any) -> Iterator[str]:
    yield f"| {head[0]} | {head[1]} |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows)


def _metrics(metrics: Mapping[str, float]) -> Iterator[str]:
    if not metrics:
        return
    yield "## Metrics"
    yield ""
    yield "From the run's `metrics.json`; likelihoods in nats."
    yield ""
    yield from _table(("metric", "value"), ((name, f"{value:.6g}") for name, value in metrics.items()))
    yield ""


def _standalone(facts: CardFacts) -> Iterator[str]:
    nodes = [cast("dict[str, Any]", facts.config["predictor"])]
    collator = _generation_collator(facts.config)
    if collator is not None:
        nodes.append(collator)
    target = str(facts.config["model"]["_target_"])
    if not hasattr(facts.model, "save_pretrained") or not all("_target_" in node for node in nodes):
        yield f"The network is a `{target}` with the arguments in `config.json`."
        return
    if facts.package:
        yield f"With `{facts.package.split()[0]}` alone, on token ids:"
        yield ""
    yield "```python"
    yield "import torch"
    yield from _imports({"model": {"_target_": target}, "nodes": nodes})
    yield ""
    yield f'model = {target.rpartition(".")[2]}.from_pretrained("{facts.origin}")'
    yield f"predict = {_call(nodes[0])}"
    if collator is not None:
        yield f"collate = {_call(collator)}"
        yield '# With "prompt_ids": torch.tensor([...]) a row continues a prompt. Of "target_ids" only the'
        yield "# length is read, by models that do not choose it themselves."
        yield 'rows = [{"seed": seed, "target_ids": torch.zeros(4, dtype=torch.int64)} for seed in (0, 1)]'
        yield "prediction = predict(model, collate(rows), torch.tensor([0, 1]))"
        yield "print([ids[:length].tolist() for ids, length in zip(prediction.ids, prediction.lengths)])"
    yield "```"
    if facts.has_tokenizer:
        yield ""
        yield "Its tokenizer, for those who use transformers:"
        yield f'`AutoTokenizer.from_pretrained("{facts.origin}")`.'


def _generation_collator(config: Mapping[str, Any]) -> dict[str, Any] | None:
    for stage in ("test", "val"):
        for loader in cast("dict[str, Any]", config["datamodule"][stage]).values():
            if GENERATION in loader["uses"]:
                return cast("dict[str, Any]", loader["collator"])
    return None


def _imports(node: object) -> Iterator[str]:
    names: dict[str, set[str]] = defaultdict(set)
    for _, target in targets(node):
        module, _, name = target.rpartition(".")
        names[module].add(name)
    for module in sorted(names):
        yield f"from {module} import {', '.join(sorted(names[module]))}"


def _call(node: object) -> str:
    """A node of the config as a Python expression."""
    if isinstance(node, Mapping):
        content = cast("Mapping[str, object]", node)
        if "_target_" not in content:
            return "{" + ", ".join(f"{name!r}: {_call(value)}" for name, value in content.items()) + "}"
        name = str(content["_target_"]).rpartition(".")[2]
        arguments = [f"{key}={_call(value)}" for key, value in content.items() if not key.startswith("_")]
        line = f"{name}({', '.join(arguments)})"
        return line if len(line) <= LINE else f"{name}(\n    " + ",\n    ".join(arguments) + ",\n)"
    if isinstance(node, list):
        return "[" + ", ".join(map(_call, cast("list[object]", node))) + "]"
    return repr(node)
