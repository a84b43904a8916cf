"""The page of job_type=view in a browser: plays to its end, obeys its keys, and nothing moves.

    uv run nox -s browser

A script at the end of a copy of the page writes what it found into the document, which headless Chromium
prints.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm.eval.viewing.page import page
from xlm.eval.viewing.traces import read_traces

from ..integration.running import run_fast

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHOWN = "views.map((view) => [...view.text.children].map((chip) => chip.firstChild.data))"
SMALL = ("model.trunk.d_model=16", "model.trunk.num_layers=1", "model.trunk.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"


@pytest.fixture(scope="session")
def browser() -> str:
    found = [path for name in PROGRAMS if (path := shutil.which(name))]
    assert found, f"no browser: install one of {', '.join(PROGRAMS)}"
    return found[0]


def in_browser(
    browser: str, folder: Path, text: str, script: str, *, width: int = 1400, fragment: str = ""
) -> Any:
    """The value of a script that calls ``done(value)`` in a page."""
    report = "const done = (value) => { const node = document.createElement('pre'); node.id = 'found'; "
    report += "node.textContent = JSON.stringify(value); document.body.append(node); };"
    path = folder / "page.html"
    path.write_text(text.replace("</body>", f"<script>{report}{script}</script></body>"), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=120000", "--dump-dom",
        f"{path.as_uri()}{fragment}",
    ]  # fmt: skip
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    return json.loads(html.unescape(found))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An insertion model and a masked one on the same prompts."""
    folder = tmp_path_factory.mktemp("runs")
    for family in ("ilm", "mdlm"):
        run_fast(folder / family, folder / "cache", "train", f"star_tiny_{family}", *SMALL, FEW_ROWS)
    return [folder / family / "fast" for family in ("ilm", "mdlm")]


def test_a_trace_played_to_its_end_is_the_prediction(browser: str, runs: list[Path], tmp_path: Path) -> None:
    groups = read_traces([str(run) for run in runs])
    assert [len(group) for group in groups] == [2] * len(groups)
    wait = "const watch = setInterval(() => { if (timer !== null) return; clearInterval(watch); "
    wait += f"done({SHOWN}); }}, 100);"
    found = in_browser(browser, tmp_path, page(groups), wait, fragment="#autoplay")
    assert [" ".join(tokens) for tokens in found] == [recorded.text for recorded in groups[0]]
    last = f"done(groups.map((_, i) => {{ open(i); keys.End(); return {SHOWN}; }}));"
    found = in_browser(browser, tmp_path, page(groups), last)
    texts = [[" ".join(tokens) for tokens in panels] for panels in found]
    assert texts == [[recorded.text for recorded in group] for group in groups]


def edited_page(folder: Path) -> str:
    """A page with edits of every kind, and a text that grows and shrinks."""
    words = [f"word{number}" for number in range(60)]
    steps: list[dict[str, Any]] = [
        {"step": 1, "tokens": words, "edited": list(range(60)),
         "edits": [{"kind": "insert", "position": place, "token": word} for place, word in enumerate(words)]},
        {"step": 2, "tokens": ["[MASK]", *words[1:]], "edited": [0],
         "edits": [{"kind": "remask", "position": 0, "token": "[MASK]"}]},
        {"step": 3, "tokens": words[31:], "edited": [0],
         "edits": [
             *({"kind": "delete", "position": 0, "token": word} for word in ["[MASK]", *words[1:30]]),
             {"kind": "delete", "position": 0, "token": "word30"},
         ]},
        {"step": 4, "tokens": ["end", *words[32:]], "edited": [0],
         "edits": [{"kind": "write", "position": 0, "token": "end", "log_prob": -0.25, "entropy": 0.5}]},
    ]  # fmt: skip
    folder.mkdir()
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"format_version": 3, "job_name": "made", "seed": 1, "task": {"name": "words"}})
    )
    record = {
        "loader": "test",
        "prompt": "",
        "text": " ".join(steps[-1]["tokens"]),
        "reference": "",
        "steps": steps,
    }
    (folder / "traces.jsonl").write_text(json.dumps(record) + "\n")
    return page(read_traces([str(folder)]))


@pytest.mark.parametrize("width", [500, 1400])
def test_nothing_moves_while_it_plays(browser: str, tmp_path: Path, width: int) -> None:
    script = """
    const heights = new Set(), kinds = [];
    for (let i = 0; i <= Number($("scrub").max); i++) {
      show(i);
      const { top } = document.querySelector(".edits").getBoundingClientRect();
      heights.add(top + " " + document.body.scrollHeight);
      kinds.push([...new Set([...views[0].text.children].map((chip) => chip.className.slice(6)))].join());
    }
    done({ heights: heights.size, kinds, wide: document.documentElement.scrollWidth <= innerWidth,
           listed: document.querySelector(".edits").textContent,
           bars: [...document.querySelectorAll(".meter span")].map((part) => part.style.width) });
    """
    found = in_browser(browser, tmp_path, edited_page(tmp_path / "run"), script, width=width)
    assert found["heights"] == 1
    assert found["wide"], "the page scrolls sideways"
    assert found["kinds"] == ["", "insert", "remask,", "delete,", "write,"]
    assert "p 0.779" in found["listed"]
    assert "entropy 0.500" in found["listed"]
    assert found["bars"] == ["77.8801%", "100%"], "fractions of 1, and of the largest entropy"


def test_keys_play_step_and_change_speed(browser: str, tmp_path: Path) -> None:
    script = """
    const seen = [], arrows = ["ArrowLeft", "ArrowLeft", "ArrowRight"];
    for (const key of [...arrows, "Home", "End", "+", "+", "-", "o", "t", " "]) {
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      seen.push([key, state, $("speed").value, $("order").getAttribute("aria-pressed"), timer !== null]);
    }
    done({ seen, theme: document.documentElement.dataset.theme });
    """
    found = in_browser(browser, tmp_path, edited_page(tmp_path / "run"), script)
    assert [entry[1] for entry in found["seen"][:5]] == [3, 2, 3, 0, 4]
    assert [entry[2] for entry in found["seen"][5:8]] == ["2", "4", "2"]
    assert found["seen"][8][3] == "true"
    assert found["seen"][-1][4], "space does not play"
    assert found["theme"] in ("dark", "light")
