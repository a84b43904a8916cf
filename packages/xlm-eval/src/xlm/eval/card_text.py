"""A card as Markdown and on the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from xlm.core.config.console import console

Row = tuple[str, str]
MEMORY = {
    "gpu_allocated": "peak memory of tensors on the GPU",
    "resident": "peak resident memory of the process",
}
"""Names of the numbers of ``xlm.eval.usage.peak_memory``."""


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page: one table for each loader, the cost of the job, then the facts that all share."""
    lines = [f"# {card['name']} on {card['task']}", ""]
    for title, rows in [*_measured(card), *_circumstances(card)]:
        lines += [f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
        lines.append("")
    return "\n".join(lines)


def show(card: Mapping[str, Any]) -> None:
    """Print the results of each loader with their intervals, and the cost of the job."""
    console.print(Text(f"\ncard of {card['name']} on {card['task']}", style="bold"))
    for title, rows in [*_measured(card), ("cost of the job", list(_cost(card)))]:
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*row)
        console.print(table, soft_wrap=False)


def _measured(card: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of each loader and its uses."""
    for name, loader in card["loaders"].items():
        yield name, [*_rows(loader["rows"]), ("batch size", f"{loader['batch_size']:,}")]
        for likelihood in loader["likelihood"]:
            yield f"{name}: likelihood of the {likelihood['of']}", list(_likelihood(likelihood))
        if "generation" in loader:
            yield f"{name}: generated texts", list(_generation(loader["generation"]))


def _circumstances(card: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of what led to the results."""
    yield "cost of the job", list(_cost(card))
    if card["sampler"] is not None:
        yield "sampler", [(key, _plain(value)) for key, value in card["sampler"].items()]
    yield "conditions", list(_conditions(card))


def _rows(rows: Mapping[str, Any]) -> Iterator[Row]:
    yield rows["unit"], f"{rows['number']:,} of the split {rows['split']}"
    left_out = [f"{number:,} {name.replace('_', ' ')}" for name, number in rows["left_out"].items() if number]
    yield "left out", ", ".join(left_out) or "none"
    if rows["truncated"]:
        yield "truncated", f"{rows['truncated']:,} rows of the split"
    if rows["hash"] is not None:
        yield "hash", rows["hash"][:16]


def _likelihood(found: Mapping[str, Any]) -> Iterator[Row]:
    draws = f", {found['draws']} draws of noise per row" if found["draws"] else ""
    yield "kind", f"{'upper bound' if found['kind'] == 'bound' else 'exact'}, length {found['length']}{draws}"
    yield "rows", f"{found['rows']:,}"
    if found["impossible_rows"]:
        yield "impossible rows", f"{found['impossible_rows']:,}, not in the means below"
    if found["nll"] is not None:
        yield "nats per row", f"{interval(found['nll'])}, standard error {found['standard_error']:.3g}"
    for name, key in (("nats per token", "nll_per_token"), ("nats per byte", "nll_per_byte")):
        if found[key] is not None:
            yield name, interval(found[key])
    if found.get("kl") is not None:
        bound = "at most " if found["kind"] == "bound" else ""
        yield f"KL(language || {found['of']})", f"{bound}{interval(found['kl'])} nats per row"
    if found["bits_per_byte"] is not None:
        yield "bits per byte", f"{found['bits_per_byte']:.4g} ({found['bytes']:,} bytes of text)"
    yield "perplexity", "infinite" if found["perplexity"] is None else interval(found["perplexity"])
    yield from _speed(found["speed"])


def _generation(found: Mapping[str, Any]) -> Iterator[Row]:
    yield "texts", f"{found['texts']:,}"
    for name, value in found["metrics"].items():
        if name != "seconds_per_sequence":  # see the speed below
            yield name.replace("_", " "), interval(value)
    for title, key in (("lengths", "lengths"), ("lengths of the data", "lengths_of_the_data")):
        if (lengths := found[key]) is not None:
            yield (
                title,
                f"mean {lengths['mean']:.4g}, 5 to 95 % {lengths['0.05']} to {lengths['0.95']}, "
                f"at most {lengths['1']}",
            )
    if found["length_distance"] is not None:
        yield "distance of the lengths", f"{found['length_distance']:.3g} (Kolmogorov-Smirnov)"
    yield from _speed(found["speed"])


def _speed(speed: Mapping[str, Any]) -> Iterator[Row]:
    yield (
        "seconds",
        f"{speed['seconds']:.3g}, of which {speed['seconds_of_first_batch']:.3g} in the first batch",
    )
    if speed["sequences_per_second"] is not None:
        yield "sequences per second", f"{speed['sequences_per_second']:.4g} after the first batch"
        yield "tokens per second", f"{speed['tokens_per_second']:.4g} after the first batch"


def _cost(card: Mapping[str, Any]) -> Iterator[Row]:
    machine = card["machine"]
    if (training := card["training"]) is not None:
        yield (
            "training",
            f"{training['seconds']:,.0f} seconds without validations, {training['tokens']:,} tokens",
        )
    if machine["seconds"] is not None:
        yield "seconds", f"{machine['seconds']:,.0f}"
    yield "CPU seconds", f"{machine['cpu_seconds']:,.0f}"
    if (memory := machine["peak_memory"]) is not None:
        yield MEMORY[memory["of"]], f"{memory['megabytes']:,.0f} MB"


def _conditions(card: Mapping[str, Any]) -> Iterator[Row]:
    weights, machine = card["weights"], card["machine"]
    step = "an unknown step" if weights["step"] is None else f"step {weights['step']:,}"
    yield "weights", f"{weights['kind']}, {step}, {weights['path']}"
    yield "seed", str(card["seed"])
    yield "tokenizer", card["tokenizer"]
    for name in ("device", "dtype", "threads", "processes", "system"):
        yield name, str(machine[name])
    for name, state in card["git"].items():
        if state is not None:
            changed = ", with changes" if state.get("changed") else ""
            yield f"commit of the {name.replace('_', ' ')}", f"{state['commit']}{changed}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    if card["command"] is not None:
        yield "command", f"`{card['command']}`"


def interval(value: Mapping[str, float]) -> str:
    """A value with its interval, if it has one."""
    if "low" not in value:
        return f"{value['value']:.4g}"
    return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"


def _cell(text: str) -> str:
    """A text in a table."""
    return text.replace("|", r"\|")


def _plain(value: object) -> str:
    return "null" if value is None else str(value)
