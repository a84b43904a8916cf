"""Markdown tables of the results of gpu.py."""

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def report(found: Sequence[Row]) -> str:
    """All tables for which there is a row; errors first."""
    device = next((row for row in found if row["what"] == "device"), None)
    parts = [_device(device)] if device else []
    peak = device["bf16_flops"] if device else None
    tables: list[tuple[str, str, dict[str, Callable[[Row], str]]]] = [
        ("Failed", "", {"what": _plain("what"), "error": _error}),
        ("Training", "training", _training(peak)),
        ("Loss and gradient beside the CPU's float32", "equal to the CPU", _EQUAL),
        ("Synchronisations with the device in a step", "waits in a step", _WAITS),
        ("Kernels", "kernels", _KERNELS),
        ("Compiling", "compiling", {"family": _plain("family"), "seconds": lambda r: f"{r['seconds']:.0f}"}),
        ("Generation, untrained networks", "generation", _GENERATION),
        ("Jobs", "job", {"job": _plain("job"), "result": _plain("result")}),
        ("Time", "time", {"part": _plain("part"), "seconds": lambda r: f"{r['seconds']:.0f}"}),
    ]
    for title, what, columns in tables:
        rows = [
            row
            for row in found
            if ("error" in row if what == "" else row["what"] == what and "error" not in row)
        ]
        if rows:
            parts.append(f"### {title}\n\n{table(rows, columns)}")
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    """A Markdown table."""
    lines = [
        list(columns),
        ["---"] * len(columns),
        *([cell(row) for cell in columns.values()] for row in rows),
    ]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in lines)


def _device(row: Row) -> str:
    return (
        f"{row['name']}, torch {row['torch']}: bfloat16 products {row['bf16_flops'] / 1e12:.0f} TFLOP/s, "
        f"copies {row['copy_bytes'] / 1e12:.2f} TB/s"
    )


def _error(row: Row) -> str:
    return f"{row['error']} {' '.join(row.get('at', []))}".strip()


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])


def _training(peak: float | None) -> dict[str, Callable[[Row], str]]:
    return {
        "family": _plain("family"),
        "compiled": lambda r: "yes" if r["compiled"] else "no",
        "rows": _plain("rows"),
        "ms a step": lambda r: f"{r['milliseconds']:.0f}",
        "tokens a second": lambda r: f"{r['tokens_per_second']:,.0f}",
        "TFLOP/s": lambda r: f"{r['flops_per_second'] / 1e12:.0f}",
        "share of the products' rate": lambda r: f"{r['flops_per_second'] / peak:.2f}" if peak else "-",
        "peak memory": lambda r: f"{r['peak_memory'] / 2**30:.1f} GiB" if r["peak_memory"] else "-",
    }


def _difference(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.1e}"


_EQUAL: dict[str, Callable[[Row], str]] = {
    "family": _plain("family"),
    "loss": lambda r: f"{r['loss']:.4f}",
    "float32, loss": _difference("float32_loss_difference"),
    "gradient": _difference("float32_gradient_difference"),
    "bfloat16, loss": _difference("bfloat16_loss_difference"),
    "its gradient": _difference("bfloat16_gradient_difference"),
}
_WAITS: dict[str, Callable[[Row], str]] = {"family": _plain("family"), "waits": _plain("waits")}
_KERNELS: dict[str, Callable[[Row], str]] = {
    "family": _plain("family"),
    "compiled": lambda r: "yes" if r["compiled"] else "no",
    "attention": lambda r: ", ".join(r["attention"]),
    "longest, share of the kernels' time": lambda r: ", ".join(f"{k} {v}" for k, v in r["longest"].items()),
}
_GENERATION: dict[str, Callable[[Row], str]] = {
    "family": _plain("family"),
    "rows": _plain("rows"),
    "tokens": _plain("tokens"),
    "evaluations a row": lambda r: f"{r['evaluations']:.1f}",
    "seconds": lambda r: f"{r['seconds']:.2f}",
    "tokens a second": lambda r: f"{r['tokens_per_second']:,.0f}",
}
