"""The lm-evaluation-harness itself on tasks of local files: every family, and arlm against its `hf` model.

uv run nox -s judges
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from xlm.core.config.errors import XLMError

from ..integration.running import run_fast

pytest.importorskip("lm_eval", reason="the extra xlm-eval[lm-eval] is not installed")

FAMILIES = ("arlm", "mlm", "ilm", "did", "editflow", "mdlm", "flexmdm", "bd3lm", "udlm")
SMALL = ("model.trunk.d_model=16", "model.trunk.num_layers=1", "model.trunk.num_heads=2")
CORPUS = (
    "task.tokenizer.vocab_size=512",
    "datamodule.train.lm.max_rows=64",
    "datamodule.val.lm.max_rows=8",
    "test_after_training=false",
    "trainer.max_steps=4",
    "trainer.val_check_interval=4",
    "monitor=val/lm/nll_per_token",
)
SENTENCES = ("Good morrow, my lord.", "Where is my father, sir?", "The king is dead.")
DOCUMENTS = {
    "chooses": [
        {"question": "KING: Come,", "choices": [" my lord.", " zq xv."], "gold": 0},
        {"question": "VIOLA: ", "choices": ["I am not what I am.", "the of and"], "gold": 1},
        {"question": "", "choices": ["Good night.", "Speak."], "gold": 0},
    ],
    "reads": [{"text": " ".join(SENTENCES)}, {"text": SENTENCES[0]}, {"text": " ".join(SENTENCES * 3)}],
    "continues": [{"start": text[:6], "end": text[6:]} for text in SENTENCES],
    "completes": [{"start": text[:6], "end": text[6:]} for text in SENTENCES],
}
TASKS: dict[str, dict[str, Any]] = {
    "chooses": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "reads": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
        ],
    },
    "continues": {
        "output_type": "generate_until",
        "doc_to_text": "{{start}}",
        "doc_to_target": "{{end}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "completes": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{start}}",
        "doc_to_target": "{{end}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        lines = [json.dumps(document) + "\n" for document in DOCUMENTS[name]]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        files = {"test": str(folder / f"{name}.jsonl")}
        head = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(json.dumps({**head, **task}))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(folder: Path, cache: Path, job_type: str, family: str, *overrides: str) -> dict[str, float]:
    return run_fast(folder, cache, job_type, f"text_tiny_{family}", *SMALL, *CORPUS, *overrides)


def asked(folder: Path, cache: Path, family: str, tasks: Path, *names: str) -> dict[str, float]:
    words = (f"++tasks=[{','.join(names)}]", f"++include_path={tasks}", "++bootstrap_iters=0")
    return run(folder, cache, "lm_eval", family, *words)


def last_results(folder: Path) -> tuple[Path, dict[str, Any]]:
    job = max((folder / "fast" / "lm_eval").iterdir())
    return job, json.loads((job / "results.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_and_says_what_its_numbers_are(
    family: str, tmp_path: Path, cache: Path, tasks: Path
) -> None:
    run(tmp_path, cache, "train", family)
    found = asked(tmp_path, cache, family, tasks, "chooses", "reads", "continues")
    assert set(found) == {
        "lm_eval/chooses/acc",
        "lm_eval/reads/word_perplexity",
        "lm_eval/continues/exact_match",
    }
    job, results = last_results(tmp_path)
    meaning = results["likelihood"]
    assert set(meaning) == {"chooses", "reads"}
    exact = {"kind": "exact", "end": "open", "num_draws": 1}
    for each in meaning.values():
        assert each == exact if family == "arlm" else (each["kind"], each["end"]) == ("upper bound", "scored")
    samples = [json.loads(line) for line in (job / "samples_continues.jsonl").read_text().splitlines()]
    assert len(samples) == len(SENTENCES)
    assert not any("." in sample["resps"][0][0] for sample in samples)
    if family != "arlm":
        with pytest.raises(XLMError, match=r"completes has the metric acc, whether greedy .* not define it"):
            asked(tmp_path, cache, family, tasks, "completes")


PACKED = (
    "datamodule.collator.bos_id=null",
    "datamodule.collator.eos_id=null",
    "task.length_limit=null",
    "task.max_target_length=32",
    "task.packing={block_length: 32, separator_id: '${vocab.eos_id}'}",
    "datamodule.train.lm.bucketing=null",
    # Nothing precedes the first token of a text that is generated.
    "~datamodule.val.prediction",
    "~datamodule.test.prediction",
)
"""Documents with a separator behind each in blocks, as models of long text are trained."""
PREFIXES = {"with BOS": (), "packed": PACKED}
LEARNS = ("optimizer.lr=0.03", "trainer.max_steps=8")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_arlm_agrees_with_the_harness_own_model_of_the_same_weights(
    prefix: str, tmp_path: Path, cache: Path, tasks: Path
) -> None:
    import_module("xlm_arlm.hf_arlm")  # registers the class with transformers
    huggingface: Any = import_module("lm_eval.models.huggingface")
    manager: Any = import_module("lm_eval.tasks").TaskManager

    options = (*PREFIXES[prefix], *LEARNS)
    has_bos = prefix == "with BOS"
    run(tmp_path, cache, "train", "arlm", *options)
    # Behind the first window of a text the harness's model has no BOS, which ours was trained with.
    names = [name for name in TASKS if name != ("reads" if has_bos else "continues")]
    words = (f"++tasks=[{','.join(names)}]", f"++include_path={tasks}", "++bootstrap_iters=0")
    ours = run(tmp_path, cache, "lm_eval", "arlm", *options, *words)
    job, _ = last_results(tmp_path)
    run(tmp_path, cache, "export", "arlm", *options)
    [exported] = (tmp_path / "fast" / "export").glob("*/model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(exported))
    if has_bos:
        put_bos_first(tokenizer)
    theirs = import_module("lm_eval.evaluator").simple_evaluate(
        model=huggingface.HFLM(
            pretrained=str(exported),
            tokenizer=tokenizer,
            add_bos_token=has_bos,
            prefix_token_id=None if has_bos else tokenizer.eos_token_id,
            device="cpu",
            dtype="float32",
            max_length=31,
            batch_size=3,
        ),
        tasks=names,
        task_manager=manager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    for name in names:
        lines = (job / f"samples_{name}.jsonl").read_text().splitlines()
        mine = {sample["doc_id"]: sample["resps"] for sample in map(json.loads, lines)}
        assert len(mine) == len(DOCUMENTS[name])
        for sample in theirs["samples"][name]:
            for (found,), (expected,) in zip(mine[sample["doc_id"]], sample["resps"], strict=True):
                assert_equal(found, expected)
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float) and "stderr" not in metric:
                key = f"lm_eval/{name}/{metric.removesuffix(',none')}"
                assert ours[key] == pytest.approx(value, rel=1e-4)


def assert_equal(found: object, expected: object) -> None:
    """The same text, or the same nats to 1e-4 and the same greediness."""
    if isinstance(expected, str):
        assert found == expected
    elif isinstance(expected, tuple):
        nats, is_greedy = cast("list[Any]", found)
        assert nats == pytest.approx(expected[0], abs=1e-4)
        assert is_greedy == bool(expected[1])
    else:
        assert found == pytest.approx(expected, abs=1e-4)


def put_bos_first(tokenizer: PreTrainedTokenizerFast) -> None:
    """Put BOS before a text, as the collators do."""
    from tokenizers.processors import TemplateProcessing

    bos, bos_id = cast("str", tokenizer.bos_token), cast("int", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, bos_id)]
    )
