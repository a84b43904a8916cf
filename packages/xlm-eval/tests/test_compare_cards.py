"""Comparison of runs with cards: intervals on the same rows, what is not comparable, plots, the page."""

import csv
import json
import random
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm.core.config.errors import XLMError
from xlm.eval.compare import compare
from xlm.eval.curves import curves
from xlm.eval.finished_runs import read_run
from xlm.eval.page import blocks
from xlm.eval.pairs import differences, marks

ROWS = random.Random(0).choices(range(100), k=1000)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(
    path: str,
    *,
    quality: float = 0.5,
    nfe: float = 4.0,
    seed: int = 1,
    rows: str = "aaaa",
    tokenizer: str = "words 6",
    kind: str = "exact",
    device: str = "cpu",
    judge: str = "gpt",
    **config: Any,
) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True)
    record = {
        "job_name": "x", "seed": seed, "monitor": "val/prediction/exact_match",
        "task": {"name": "star", "metrics": {"judge": {"_target_": "a.B", "path": judge}}}, **config,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    metrics = {
        "test/prediction/exact_match": quality,
        "test/prediction/nfe_per_sequence": nfe,
        "test/prediction/seconds_per_sequence": nfe / 10,
        "test/lm/nll": 2.0,
        "test/lm/is_bound": float(kind == "bound"),
        "test/lm/models_length": 1.0,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    likelihood: dict[str, Any] = {
        "of": "network", "kind": kind, "length": "modelled", "impossible_rows": 0,
        "nll": {"value": 2.0, "low": 1.9, "high": 2.1}, "bits_per_byte": 1.25,
        "kl": {"value": 0.5, "low": 0.4, "high": 0.6},
        **dict.fromkeys(("nll_per_token", "nll_per_byte", "perplexity")),
    }  # fmt: skip
    entries = {
        "exact_match": {"value": quality, "low": quality - 0.1, "high": quality + 0.1},
        "token_entropy": {"value": nfe / 2, "low": nfe / 2, "high": nfe / 2},
    }
    described = {"hash": rows, "number": 20, "split": "test"}
    card = {
        "seed": seed,
        "tokenizer": tokenizer,
        "command": f"xlm job_type=eval job_name={folder.name}",
        "weights": {"kind": "ema", "step": 7},
        "git": {"xlm": {"commit": "c" * 40, "changed": True}},
        "training": {"tokens": 5000, "seconds": 12.5},
        "machine": {
            "device": device, "dtype": "32-true", "threads": 1, "processes": 1,
            "peak_memory": {"of": "resident" if device == "cpu" else "gpu_allocated", "megabytes": 640.0},
        },
        "loaders": {
            "lm": {"rows": described, "batch_size": 4, "likelihood": [likelihood]},
            "prediction": {
                "rows": described,
                "batch_size": 4,
                "likelihood": [],
                "generation": {"metrics": entries, "speed": {"sequences_per_second": 20 / nfe}},
            },
        },
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))
    replicates = {
        "prediction/exact_match": [quality + row / 1000 for row in ROWS],
        "prediction/token_entropy": [nfe / 2],
        "lm/nll": [2.0 + row / 1000 for row in ROWS],
        "lm/kl": [0.5],
    }
    (folder / "replicates.json").write_text(json.dumps(replicates))
    return folder


def compared(*patterns: str, quality: str | None = None) -> Path:
    compare(patterns, "runs", quality)
    [folder] = Path("runs/compare").iterdir()
    return folder


def test_a_paired_difference_has_the_quantiles_of_its_replicates() -> None:
    """The rows move both runs alike, so that only their constant gap is left."""
    first, second = (read_run(make_run(name, quality=q)) for name, q in (("a", 0.5), ("b", 0.6)))
    found, refused = differences(first, second)
    assert not refused
    assert set(found) == {"prediction/exact_match", "prediction/token_entropy", "lm/nll", "lm/kl"}
    gap = found["prediction/exact_match"]
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    assert str(found["lm/nll"]) == "+0 [+0, +0]"
    other = json.loads(Path("b/replicates.json").read_text())
    other["prediction/exact_match"] = [0.6 + i / 1000 - row / 1000 for i, row in enumerate(ROWS)]
    Path("b/replicates.json").write_text(json.dumps(other))
    gap = differences(first, second)[0]["prediction/exact_match"]
    gaps = sorted(0.1 + (i - 2 * row) / 1000 for i, row in enumerate(ROWS))
    assert gaps[24] <= gap.low <= gaps[25]
    assert gaps[973] <= gap.high <= gaps[975]


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"rows": "bbbb"}, "prediction: other test rows"),
    "judge": ({"judge": "llama"}, "prediction: other metrics, or another judge"),
    "kind": ({"kind": "bound"}, "lm/network: likelihoods of two kinds"),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_is_not_comparable_has_no_interval_and_a_mark(what: str) -> None:
    changes, reason = UNLIKE[what]
    first, second = read_run(make_run("a")), read_run(make_run("b", **changes))
    found, refused = differences(first, second)
    assert any(reason in line for line in refused)
    assert ("prediction/exact_match" in found) == (what == "kind")
    assert ("lm/nll" in found) == ("lm/kl" in found) == (what == "judge")
    marked = marks({"one": [first], "two": [second]})
    assert marked.has("prediction/exact_match") == (what != "kind")
    assert marked.has("lm/nll (exact, with length)") == (what == "rows")
    if what != "kind":  # likelihoods of two kinds have rows of their own
        assert any("differ: one | two." in note for note in marked.notes)


def test_units_and_conditions_are_marked() -> None:
    first, second = read_run(make_run("a")), read_run(make_run("b", tokenizer="bytes 256", device="cuda"))
    marked = marks({"one": [first], "two": [second]})
    assert marked.has("lm/perplexity (exact, with length)")
    assert not marked.has("lm/bits_per_byte (exact, with length)")
    assert marked.has("prediction/seconds_per_sequence")
    assert not marked.has("prediction/nfe_per_sequence")
    assert marked.has("training/seconds")
    assert (first.metrics["test/training/seconds"], first.metrics["test/training/tokens"]) == (12.5, 5000)
    assert "test/job/peak_resident_megabytes" in first.metrics.keys() - second.metrics.keys()
    assert "test/job/peak_gpu_allocated_megabytes" in second.metrics.keys() - first.metrics.keys()
    assert not marks({"one": [first], "two": [first]}).notes
    card = json.loads(Path("a/card.json").read_text())
    del card["loaders"]["lm"]
    (make_run("c") / "card.json").write_text(json.dumps(card))
    assert not marks({"one": [first], "texts only": [read_run(Path("c"))]}).notes


def test_runs_without_a_card_are_named() -> None:
    make_run("a")
    make_run("b", model={"d": 1})
    Path("b/card.json").unlink()
    text = (compared("a", "b") / "comparison.md").read_text()
    assert "Without a card, so that the test rows are not known: b." in text
    assert "no paired interval of b: all: a run without a card" in text


class Page(HTMLParser):
    """Counts the elements of a page, and its references to other files."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.references.append(value or "")


def test_a_frontier_becomes_a_page_with_plots() -> None:
    for temperature in (0.5, 1.0):
        for steps in (1, 8, 64):
            make_run(
                f"runs/m/frontier/ab/t={temperature},s={steps}",
                quality=0.2 + steps / 100 + temperature / 10,
                nfe=steps,
                predictor={"temperature": temperature, "sampler": {"num_steps": steps}},
            )
    folder = compared("runs/m/frontier/ab/*")
    names = {path.name for path in folder.iterdir()}
    plots = ("quality-network-evaluations", "quality-seconds", "quality-entropy")
    assert names == {"comparison.md", "comparison.json", "report.html"} | {
        f"star-{plot}.{ending}" for plot in plots for ending in ("svg", "pdf")
    }
    svg = (folder / "star-quality-network-evaluations.svg").read_text()
    ET.fromstring(svg)
    # A series for each temperature, and the steps beside its points.
    assert "m, temperature=0.5" in svg
    assert "at the points: num_steps" in svg
    assert svg.count(">64<") >= 2
    rows = json.loads((folder / "comparison.json").read_text())["star"]
    seconds = rows["prediction/seconds_after_first_batch"]["m num_steps=8, temperature=0.5"]
    assert seconds["mean"] == pytest.approx(0.4)
    assert (folder / "star-quality-seconds.pdf").read_bytes().startswith(b"%PDF")
    page = Page()
    text = (folder / "report.html").read_text()
    page.feed(text)
    assert page.tags.count("svg") == 3
    assert not page.references
    assert "<script" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "xlm job_type=eval job_name=t=0.5,s=1" in text
    assert "xlm job_type=compare &#x27;runs=[runs/m/frontier/ab/*]&#x27;" in text
    assert "ema weights of step 7, commit cccccccccc with changes" in text
    table = (folder / "comparison.md").read_text()
    assert "[0.16, 0.36]" in table
    assert "### Differences from m num_steps=1, temperature=0.5" in table
    assert "| predictor.sampler.num_steps | 1 | 8 | 64 | 1 | 8 | 64 |" in table
    assert "| lm/kl (exact, with length) | 0.5 [0.4, 0.6] |" in table


def test_curves_have_intervals_over_seeds() -> None:
    metric = "val/prediction/exact_match"
    for seed in (1, 2, 3):
        folder = make_run(f"runs/s{seed}", seed=seed)
        (folder / "csv/version_0").mkdir(parents=True)
        rows = [
            {"step": 9, "training/tokens": 200, "training/seconds": seed, metric: 0.1 * seed},
            {"step": 15, "train/loss": 1.0},
            {"step": 19, "training/tokens": 300, "training/seconds": 2 * seed, metric: 0.2 * seed},
        ]
        columns = ["step", "train/loss", metric, "training/tokens", "training/seconds"]
        with (folder / "csv/version_0/metrics.csv").open("w") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    folder = compared("runs/s*")
    drawn = {path.stem for path in folder.glob("*.svg")}
    assert {f"star-training-{axis}" for axis in ("steps", "tokens", "seconds")} <= drawn
    runs = [read_run(Path(f"runs/s{seed}")) for seed in (1, 2, 3)]
    [curve] = curves({"s": runs}, metric, "step").values()
    assert [place for place, _ in curve] == [10, 20]
    [curve] = curves({"s": runs}, metric, "training/seconds").values()
    assert [place for place, _ in curve] == [2, 4]
    [curve] = curves({"s": runs}, metric, "training/tokens").values()
    assert [place for place, _ in curve] == [200, 300]
    assert curve[0][1].mean == pytest.approx(0.2)
    assert curve[0][1].half_width == pytest.approx(4.303 * 0.1 / 3**0.5)


def test_an_unknown_quality_is_one_line() -> None:
    make_run("a")
    with pytest.raises(XLMError, match=r"no run has prediction/exact\. Did you mean prediction/exact_match"):
        compare(["a"], "runs", "prediction/exact")
    assert not Path("runs").exists()


def test_text_of_a_report_as_html() -> None:
    text = "## A <b>\n\n| | x |\n|---|---|\n| a\\|b | `c` |\n\n- one\n- two\n\n```bash\nxlm <x>\n```\nend"
    assert "".join(blocks(text)) == (
        "<h2>A &lt;b&gt;</h2>"
        '<div class="wide"><table><thead><tr><th></th><th>x</th></tr></thead>'
        "<tbody><tr><td>a|b</td><td><code>c</code></td></tr></tbody></table></div>"
        "<ul><li>one</li><li>two</li></ul><pre><code>xlm &lt;x&gt;</code></pre><p>end</p>"
    )
