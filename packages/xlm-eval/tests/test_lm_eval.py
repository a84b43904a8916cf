"""The requests of the lm-evaluation-harness, answered by a family whose values are known.

Here the harness is a small stand-in with its interface; `nox -s judges` runs the real one.
"""

import itertools
import json
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xlm.core.config.errors import XLMError
from xlm.eval.field_tasks.requests import Decoding, encode_pair

from .chain_family import BOS, END, ChainModel, ChainTokenizer
from .conftest import Run

TOKENIZER = ChainTokenizer()
LOADERS = {
    "train.lm": True,
    "val.lm": True,
    "val.prediction": False,
    "test.lm": True,
    "test.prediction": False,
}
CHAIN = (
    "task.tokenizer._target_=chain_family.ChainTokenizer",
    "task.preprocess._target_=chain_family.encode_row",
    "++task.max_target_length=7",
    "model._target_=chain_family.ChainModel",
    "predictor._target_=chain_family.ChainPredictor",
    "+predictor.temperature=1.0",
    *(f"datamodule.{loader}.collator._target_=chain_family.ChainCollator" for loader in LOADERS),
    *(f"+datamodule.{loader}.collator.end={end}" for loader, end in LOADERS.items()),
    "datamodule.batch_size=2",
)
OPEN, WHOLE = (f"loss._target_=chain_family.{name}" for name in ("OpenChainLoss", "ChainLoss"))


@dataclass
class Instance:
    """A request, as the harness has it."""

    args: tuple[Any, ...]
    doc_id: int = 0
    task_name: str = "t"


class Task:
    """A task of the harness with its requests."""

    def __init__(self, output_type: str, requests: Sequence[tuple[Any, ...]], metric: str) -> None:
        self.config: dict[str, Any] = {"output_type": output_type, "metric_list": [{"metric": metric}]}
        self.requests = [Instance(args, number) for number, args in enumerate(requests)]

    def get_config(self, key: str) -> Any:
        return self.config.get(key)


TASKS = {
    "chooses": Task("multiple_choice", [("ab", "cd"), ("ab", "d"), ("", "a"), ("abcdabcd", "ab")], "acc"),
    "completes": Task("loglikelihood", [("ab ", "cd"), ("", "abc")], "acc"),
    "reads": Task("loglikelihood_rolling", [("abcdabcd abcd",), ("d",), ("",)], "word_perplexity"),
    "continues": Task(
        "generate_until",
        [("a", {"until": ["c"], "max_gen_toks": 4}), ("ab", {"until": [], "max_gen_toks": 2})] * 2,
        "exact_match",
    ),
}
METHODS = {"multiple_choice": "loglikelihood", "generate_until": "generate_until"}


class Harness:
    """The parts of the harness that the job uses."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}

    def manager(
        self, include_path: str | None = None, include_defaults: bool = True
    ) -> types.SimpleNamespace:
        def load(names: Sequence[str]) -> dict[str, Any]:
            return {"tasks": {name: TASKS[name] for name in names}}

        return types.SimpleNamespace(all_tasks=list(TASKS), load=load)

    def simple_evaluate(self, *, model: Any, tasks: Sequence[str], **_: object) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name in tasks:
            kind = str(TASKS[name].config["output_type"])
            self.answers[name] = getattr(model, METHODS.get(kind) or kind)(TASKS[name].requests)
            results[name] = {"alias": name, "value,none": 0.5, "value_stderr,none": 0.25}
        return {"results": results, "samples": {name: [self.answers[name]] for name in tasks}}


def rolling_windows(
    *, token_list: list[int], prefix_token: int, max_seq_len: int, context_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    """As the harness's documentation describes them, for a context of one token."""
    tokens = [prefix_token, *token_list]
    for start in range(0, len(token_list), max_seq_len):
        end = min(start + max_seq_len, len(token_list))
        begin = max(0, end - max_seq_len)
        yield tokens[begin:end], tokens[start + 1 : end + 1]


def disjoint(pair: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    context, predicted = pair
    return context[: len(context) - len(predicted) + 1], predicted


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    harness = Harness()
    modules: dict[str, dict[str, Any]] = {
        "lm_eval": {"__spec__": types.SimpleNamespace()},
        "lm_eval.api.model": {"LM": object},
        "lm_eval.utils": {"get_rolling_token_windows": rolling_windows, "make_disjoint_window": disjoint},
        "lm_eval.tasks": {"TaskManager": harness.manager},
        "lm_eval.evaluator": {"simple_evaluate": harness.simple_evaluate},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return harness


@pytest.fixture
def chain(run_toy: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run_toy(
        "job_type=train",
        "trainer.max_steps=1",
        "test_after_training=false",
        *CHAIN,
        WHOLE,
        "monitor=val/lm/nll",
        "trainer.val_check_interval=1",
    )
    return lambda *words: run_toy("job_type=lm_eval", *CHAIN, *words)


def log_prob(context: str, text: str, *, ends: bool) -> float:
    """Of ``text`` after BOS and ``context``, and then of END."""
    ids = [BOS, *TOKENIZER.encode(context + text), *([END] if ends else [])]
    table = ChainModel().table
    steps = list(itertools.pairwise(ids))[len(context) :]
    return sum(float(table[before, after]) for before, after in steps)


def greedy(context: str, most: int) -> str:
    table, ids = ChainModel().table, [BOS, *TOKENIZER.encode(context)]
    for _ in range(most):
        if (following := int(table[ids[-1]].argmax())) == END:
            break
        ids.append(following)
    return TOKENIZER.decode(ids[1 + len(context) :])


def results(tmp_path: Path) -> dict[str, Any]:
    job = max((tmp_path / "runs/toy/lm_eval").iterdir())
    return json.loads((job / "results.json").read_text())


def test_beginnings_of_texts_are_exact_where_the_family_scores_them(
    chain: Run, harness: Harness, tmp_path: Path
) -> None:
    found = chain(OPEN, "++tasks=[chooses,completes,reads,continues]")
    assert found == {f"lm_eval/{name}/value": 0.5 for name in TASKS}
    # A text has 7 letters, so 5 of a context fit before 2.
    cut = [("ab", "cd"), ("ab", "d"), ("", "a"), ("dabcd", "ab")]
    expected = [log_prob(*pair, ends=False) for pair in cut]
    assert [value for value, _ in harness.answers["chooses"]] == pytest.approx(expected, rel=1e-12)
    # Spaces behind a context belong to the continuation.
    pairs = [("ab", " cd"), ("", "abc")]
    answers = harness.answers["completes"]
    assert [value for value, _ in answers] == pytest.approx([log_prob(*pair, ends=False) for pair in pairs])
    expected_greedy = [greedy("ab", 3) == " cd", greedy("", 3) == "abc"]
    assert [is_greedy for _, is_greedy in answers] == expected_greedy
    # Six letters at a time, each scored once, behind those before them that still fit.
    windows = log_prob("", "abcdab", ends=False) + log_prob("b", "cd abc", ends=False)
    windows += log_prob("cd abc", "d", ends=False)
    assert harness.answers["reads"] == pytest.approx([windows, log_prob("", "d", ends=False), 0.0])
    texts = [greedy("a", 4).partition("c")[0], greedy("ab", 2)]
    assert harness.answers["continues"] == texts * 2
    meaning = {"kind": "exact", "end": "open", "num_draws": 1}
    assert results(tmp_path)["likelihood"] == dict.fromkeys(("chooses", "completes", "reads"), meaning)
    assert results(tmp_path)["contexts_cut"] == 1


def test_elsewhere_a_text_is_scored_with_its_end_and_says_that_it_is_a_bound(
    chain: Run, harness: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain(WHOLE, "++tasks=[chooses,reads]")
    value, is_greedy = harness.answers["chooses"][0]
    assert value == pytest.approx(log_prob("ab", "cd", ends=True), rel=1e-12)
    assert is_greedy is False
    meaning = {"kind": "upper bound", "end": "scored", "num_draws": 4}
    assert results(tmp_path)["likelihood"] == dict.fromkeys(("chooses", "reads"), meaning)
    assert "upper bound, end scored, 4 draws" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(XLMError, match=r"completes has the metric acc, .* ChainLoss does not define it"):
        chain(WHOLE, "++tasks=[completes]")


def test_a_context_may_be_the_prompt_of_a_row(chain: Run, harness: Harness, tmp_path: Path) -> None:
    chain(OPEN, "++tasks=[chooses,continues]", "++context=prompt")
    expected = [log_prob(*TASKS["chooses"].requests[number].args, ends=False) for number in range(4)]
    assert [value for value, _ in harness.answers["chooses"]] == pytest.approx(expected, rel=1e-12)
    assert results(tmp_path)["contexts_cut"] == 0


def test_draws_differ_between_equal_requests_and_not_between_runs(chain: Run, harness: Harness) -> None:
    words = (OPEN, "++tasks=[continues]")
    kwargs = {"until": [], "max_gen_toks": 5, "do_sample": True, "temperature": 3.0}
    requests = [Instance(("a", kwargs)) for _ in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS["continues"], "requests", requests)
        chain(*words)
        first = harness.answers["continues"]
        chain(*words, "datamodule.batch_size=5")
        assert harness.answers["continues"] == first
    assert len(set(first)) > 2


def test_an_interrupted_job_continues_without_repeating_requests(
    chain: Run, harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import chain_family

    words = (OPEN, "++tasks=[chooses,reads,continues]")
    scored: list[int] = []
    original = chain_family.OpenChainLoss.prefix_likelihood

    def count(self: Any, model: Any, batch: Any) -> Any:
        if len(scored) == 3:
            scored.append(0)
            raise KeyboardInterrupt
        scored.append(len(batch.lengths))
        return original(self, model, batch)

    monkeypatch.setattr(chain_family.OpenChainLoss, "prefix_likelihood", count)
    with pytest.raises(KeyboardInterrupt):
        chain(*words)
    [folder] = (tmp_path / "runs/toy/lm_eval").iterdir()
    assert json.loads((folder / "versions.json").read_text())["ended"] is None
    # The line that a killed process has begun.
    with (folder / ".answers.jsonl").open("a") as file:
        file.write('{"1234": {"sco')
    found = chain(*words)
    continued = dict(harness.answers)
    # 4 of "chooses" and 4 windows of "reads", one of them in the batch that was interrupted.
    assert [path.name for path in (tmp_path / "runs/toy/lm_eval").iterdir()] == [folder.name]
    assert scored == [2, 2, 2, 0, 2]
    assert not (folder / ".answers.jsonl").exists()
    first = results(tmp_path)
    assert chain(*words) == found
    assert harness.answers == continued
    assert scored[5:] == [2, 2, 2, 2]
    for name in ("likelihood", "contexts_cut"):
        assert results(tmp_path)[name] == first[name]


MISTAKES = {
    "tasks: missing": (),
    r"there is no choses in the lm-evaluation-harness.* Did you mean chooses": ("++tasks=[choses]",),
    "include_path: there is no folder nowhere": ("++tasks=[chooses]", "++include_path=nowhere"),
    "runs in one process": ("++tasks=[chooses]", "trainer.devices=2"),
    "max_length: a continuation has 3 tokens, and a text 2": ("++tasks=[completes]", "++max_length=2"),
    "max_length: missing": ("++tasks=[chooses]", "++task.max_target_length=null"),
    r"max_gen_toks: got 4, but a text has 3": ("++tasks=[continues]", "++max_length=3"),
    r"chooses asks for multiple_choice\. .* no loader has `uses: \[likelihood\]`": (
        "++tasks=[chooses]",
        "datamodule.val.lm.uses=[loss]",
        "datamodule.test.lm.uses=[loss]",
    ),
}


def test_a_mistake_is_one_line(chain: Run, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for message, words in MISTAKES.items():
        with pytest.raises(XLMError, match=message):
            chain(OPEN, *words)
    for name in list(sys.modules):
        if name.startswith("lm_eval"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("xlm.eval.jobs.find_spec", dict[str, None]().get)
    with pytest.raises(XLMError, match=r'needs an extra: uv pip install "xlm-eval\[lm-eval\]"'):
        chain(OPEN, "++tasks=[chooses]")


def test_a_pair_is_divided_as_the_harness_divides_it() -> None:
    class Merging(ChainTokenizer):
        """ "ab" is one token wherever it stands, that of "d"."""

        def encode(self, text: str) -> list[int]:
            return super().encode(text.replace("ab", "d"))

    assert encode_pair("ca ", "b", TOKENIZER, together=True) == ([5, 3], [7, 4])
    assert encode_pair("ca", "bc", Merging(), together=True) == ([5, 3], [5])
    assert encode_pair("ca", "bc", Merging(), together=False) == ([5, 3], [4, 5])
    assert encode_pair("", "d", TOKENIZER, together=True) == ([], [6])
    with pytest.raises(XLMError, match=r"the continuation '' of 'a' has no token"):
        encode_pair("a", "", TOKENIZER, together=True)
    with pytest.raises(XLMError, match="the tokenizer of the run cannot encode 'xyz'"):
        encode_pair("xyz", "a", TOKENIZER, together=True)


def test_the_decoding_is_that_of_the_task() -> None:
    predictor = {"_target_": "a.B", "temperature": 0.7, "top_p": 0.9}
    assert Decoding.of({"until": "\n"}, predictor) == Decoding(("\n",), None, {"temperature": 0.0})
    sampled = Decoding.of({"do_sample": True, "temperature": 0.5, "max_new_tokens": 3}, predictor)
    assert sampled == Decoding((), 3, {"temperature": 0.5, "top_p": None})
    assert Decoding.of({"do_sample": False, "temperature": 0.5}, predictor).sampling == {"temperature": 0.0}
    assert Decoding.of({}, {"_target_": "a.Beam"}).sampling == {}
    with pytest.raises(XLMError, match="takes no num_beams from a task"):
        Decoding.of({"num_beams": 4}, predictor)
    with pytest.raises(XLMError, match=r"the predictor a\.Beam has no temperature"):
        Decoding.of({"do_sample": True}, {"_target_": "a.Beam"})
    assert Decoding(("\n", "b"), None, {}).cut("acb\nd") == "ac"
