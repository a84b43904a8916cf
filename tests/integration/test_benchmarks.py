"""The benchmarks in their small form on the CPU: every part runs, and reports its results."""

import importlib
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xlm.tasks.star import LEVELS, encode_star, star_rows
from xlm.tasks.star.graphs import split_of
from xlm.tasks.tokenizers import SPECIAL_TOKENS, NumberTokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
FAMILIES = ("arlm", "mlm", "ilm", "did", "mdlm", "flexmdm")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks import one another by their names, as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    own = {path.stem for path in BENCHMARKS.glob("*.py")}
    for name in [name for name in sys.modules if name in own]:
        del sys.modules[name]


def module(name: str) -> Any:
    """A benchmark as a module; without types, since the benchmarks are not checked."""
    return importlib.import_module(name)


@pytest.mark.parametrize("family", [*FAMILIES, "bd3lm"])
def test_a_family_is_measured(family: str) -> None:
    parts, gpu_tables = module("gpu_parts"), module("gpu")
    found: list[dict[str, Any]] = []
    turns: list[int] = []
    parts.run_part("plain", family, parts.SMALL, CPU, found.append, lambda: turns.append(len(found)))
    by_name = {row["what"]: row for row in found}
    assert list(by_name) == ["equal to the CPU", "training", "kernels", "generation"]
    assert turns == [1], "what is timed comes after the turn"
    assert by_name["equal to the CPU"]["float32_loss_difference"] == 0
    assert 0 < by_name["equal to the CPU"]["bfloat16_loss_difference"] < 1e-2
    assert by_name["training"]["rows"] == parts.SMALL.rows
    assert by_name["training"]["scored_cells"] > 0
    assert any("attention" in name for name in by_name["kernels"]["attention"])
    assert by_name["generation"]["evaluations"] > 0
    text = gpu_tables.report(found)
    assert "Failed" not in text
    assert text.count(f"| {family} |") == 4


def test_what_fails_is_a_row_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, gpu_tables = module("gpu_parts"), module("gpu")

    def fail(*_: object) -> None:
        raise RuntimeError("called a synchronizing\nCUDA operation")

    monkeypatch.setattr(parts, "compare_with_cpu", fail)
    monkeypatch.setattr(parts, "generate", fail)
    found: list[dict[str, Any]] = []
    parts.run_part("plain", "mlm", parts.SMALL, CPU, found.append, lambda: None)
    failed = [row for row in found if "error" in row]
    assert [row["what"] for row in failed] == ["equal to the CPU: mlm", "generation: mlm"]
    assert failed[0]["error"] == "RuntimeError: called a synchronizing CUDA operation"
    assert any(row["what"] == "training" for row in found)
    assert "| equal to the CPU: mlm | RuntimeError: called" in gpu_tables.report(found)


def test_rows_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = module("gpu_parts")
    plain_step = parts.Trained.step

    def step(self: Any) -> None:
        if len(self.on_host[0]["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        plain_step(self)

    monkeypatch.setattr(parts.Trained, "step", step)
    made = parts.made("mlm", parts.SMALL)
    found: list[dict[str, Any]] = []
    parts.train("mlm", parts.SMALL, made, made.model, CPU, found.append, compiled=False)
    (row,) = found
    assert row["rows"] == 1


@pytest.mark.parametrize(("family", "causal"), [("mlm", 1.0), ("arlm", 0.5)])
def test_operations_are_those_that_torch_counts(family: str, causal: float) -> None:
    parts, families = module("gpu_parts"), module("gpu_families")
    made = parts.made(family, parts.SMALL)
    batch = made.collate(families.texts(0, 3, 20, parts.SMALL.size.vocab_size))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        families.mean_loss(made, made.model, batch).backward()
    size = parts.SMALL.size
    rows, columns = batch["input_ids"].shape
    # torch counts the whole square of attention also in a causal network, and the arlm reads no last column.
    seen = columns - (family == "arlm")
    square = 12.0 * size.num_layers * size.d_model * rows
    weights = counter.get_total_flops() - square * seen**2
    per_column = 6.0 * 12 * size.d_model**2 * size.num_layers * rows
    # The last block computes queries of all cells that it sees, and needs those of the cells that are read.
    unread = rows * columns - families.read_cells(family, batch, rows * columns)
    spared = 6.0 * size.d_model**2 * unread * (1 if seen == columns else 10)
    attention = causal * (square * columns**2 - 12.0 * size.d_model * columns * unread)
    expected = weights + per_column * (columns - seen) - spared + attention
    assert families.training_flops(family, made.model, batch) == pytest.approx(expected, rel=1e-12)


def test_the_command_writes_lines_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, parts = module("gpu"), module("gpu_parts")
    script = tmp_path / "gpu_parts.py"
    row = {"what": "waits in a step", "family": "mlm", "waits": 0}
    script.write_text(f"print('ready', flush=True)\nassert input() == 'go'\nprint({json.dumps(row)!r})\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    out = tmp_path / "out"
    gpu.main(["--small", "--out", str(out), "--parts", "plain", "--families", "mlm"])
    rows = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    assert [row["what"] for row in rows] == ["waits in a step", "time"]
    assert rows[0] == row
    assert "| mlm | 0 |" in (out / "gpu.md").read_text()
    assert (parts.READY, parts.GO) == ("ready", "go")


def test_a_part_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = module("gpu_parts")
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", "device", "", "--device", "cpu", "--small"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    parts.main()
    ready, line = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert json.loads(line)["bf16_flops"] > 0


def test_a_part_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = module("gpu")
    script = tmp_path / "gpu_parts.py"
    script.write_text("import time\nprint('ready', flush=True)\ninput()\ntime.sleep(600)\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "TURN_SECONDS", {"plain": 0.2})
    results = gpu.Results(tmp_path)
    gpu.together("plain", ["mlm"], [], results, time.monotonic() + 60, 1.0)
    assert results.found[0] == {"what": "plain mlm", "error": "not done after 1 s"}
    script.write_text("raise SystemExit('no such device')")
    gpu.together("plain", ["ilm"], [], results, time.monotonic() + 60, 1.0)
    assert results.found[2] == {"what": "plain ilm", "error": "exit code 1: no such device"}


def test_star_graphs_are_those_of_the_task() -> None:
    star = module("gpu_star_train")
    assert len(SPECIAL_TOKENS) == star.FIRST
    tokenizer = NumberTokenizer(LEVELS["medium"].num_labels)
    rows = list(star_rows("test", level="medium", num_rows={"test": 5}, seed=0))
    for row, example in zip(rows, star.unseen("medium", "test", 5), strict=True):
        assert encode_star(row, tokenizer) == {
            name: example[name].tolist() for name in ("prompt_ids", "target_ids")
        }

    def keep(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        return {"rows": list(rows)}

    batch = next(iter(star.Graphs(LEVELS["medium"], 64, keep, seed=0)))
    for row in batch["rows"]:
        edges = (row["prompt_ids"][:-2] - star.FIRST).view(-1, 2).tolist()
        assert split_of([(tail, head) for tail, head in edges]) == "train"
    assert len({row["seed"] for row in batch["rows"]}) == 64


@pytest.mark.parametrize("family", ["ilm", "flexmdm"])
def test_a_star_training_goes_on_from_its_checkpoint(family: str, tmp_path: Path) -> None:
    star = module("gpu_star_train")
    found: list[dict[str, Any]] = []
    for _ in range(2):
        star.train(
            "tiny",
            family,
            star.SMALL,
            CPU,
            deadline=time.monotonic(),  # a step is made all the same, and no validation
            checkpoint=tmp_path / "small.pt",
            workers=0,
            tell=found.append,
        )
    assert [row["step"] for row in found] == [1, 2]
    assert [row["rows"] for row in found] == [16, 32]
    assert all("test" in row and "validation" not in row for row in found)
    assert np.isfinite([row["loss"] for row in found]).all()


def test_star_shares_the_time_by_its_order() -> None:
    star = module("gpu_star")
    options = star.argparse.Namespace(parallel=2, least=1.0)
    visit = star.Visit(options, time.monotonic() + 100, [("easy", "ilm"), ("hard", "ilm")])
    (first, end), (second, other) = visit.next(), visit.next()
    assert (first, second) == (("easy", "ilm"), ("hard", "ilm"))
    # 200 seconds of two places, by 2 to 4; none may end after the visit.
    assert end - time.monotonic() == pytest.approx(200 / 3, abs=2)
    assert other == visit.deadline
    assert visit.next() is None
    text = star.report(
        [{"level": "hard", "family": "ilm", "test": 0.5, "step": 3, "rows": 10, "seconds": 1.0}]
    )
    assert "| hard | ilm | 50.0 | - | 99.1 | 3 |" in text


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Benchmarks set the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_timings_of_steps_and_generation(capsys: pytest.CaptureFixture[str]) -> None:
    steps, generation, training = module("steps"), module("generation"), module("training")
    tiny = ["--size", "tiny", "--repeats", "1"]
    steps.main(["gpt2", *tiny])
    steps.main(["optimizers", *tiny])
    steps.main(["star", "--families", "arlm", "--repeats", "1"])
    generation.main(["text", *tiny, "--tokens", "4", "--families", "arlm", "ilm", "mdlm"])
    out = capsys.readouterr().out
    assert out.count("ratio") == 2
    assert out.count("products") == 5
    assert out.count("evaluations") == 3
    assert "4.0 tokens    4.0 evaluations" in out, "8 rows by insertion or from left to right"
    assert training.measure("ilm", "tiny", 1)["products"] > 0


def test_growth_is_that_of_its_points() -> None:
    growth = module("growth")
    points = [
        {"family": "ilm", "axis": "batch", "value": value, "seconds": value**2, "megabytes": 3 * value}
        for value in (2, 4, 8)
    ]
    assert growth.exponents(points, "batch", "ilm", "seconds") == pytest.approx([2, 2])
    assert growth.table(points).splitlines()[2:] == ["| time by batch | 2.00 |", "| memory by batch | 1.00 |"]
    seconds, megabytes = growth.train("ilm", {"batch": 1, "length": 8, "vocabulary": 20, "depth": 1})
    assert seconds > 0
    assert megabytes >= 0


def test_the_guard_fails_where_a_ratio_is_worse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = module("guard")
    ratios = {"mlm": 1.0, "ilm": 2.0}
    monkeypatch.setattr(guard, "PARTS", {"steps": lambda: dict(ratios)})
    monkeypatch.setattr(guard, "RECORDED", tmp_path / "ratios.json")
    guard.main(["--record"])
    ratios["ilm"] *= 0.99 * guard.MARGIN
    guard.main([])
    assert "no ratio is worse" in capsys.readouterr().out
    ratios["ilm"] *= 1.1
    with pytest.raises(SystemExit, match=r"slower: steps: ilm is 2.83, recorded 2: 1.42 times, allowed 1.3"):
        guard.main([])
    ratios["arlm"] = 1.0
    with pytest.raises(SystemExit, match="not recorded: steps: arlm"):
        guard.main([])


def test_the_guard_measures_again_what_is_slow_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = module("guard")
    times = iter([2.0, 1.9, 1.1])
    monkeypatch.setattr(guard, "PARTS", {"steps": lambda: {"mlm": next(times)}})
    assert guard.checked(["steps"], {"steps: mlm": 1.0}) == []
    assert list(times) == []


def test_recorded_ratios_are_those_that_the_guard_measures() -> None:
    guard = module("guard")
    recorded = json.loads(guard.RECORDED.read_text())["ratios"]
    assert {name.partition(": ")[0] for name in recorded} == set(guard.PARTS)
