"""The jobs, run in this process on the toy family."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported

from xlm.core.config.errors import XLMError
from xlm.core.saving.run_record import git_state
from xlm.core.saving.versions import is_unfinished

from .conftest import Run
from .runs import repeatable


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown_beside_hyperparameters(folder: Path) -> set[str]:
    """The metrics of a run in TensorBoard's tab HPARAMS; its event files must hold values of them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    named = {info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert named <= set(events.scalars.Keys())
    started = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert "optimizer.lr" in HParamsPluginData.FromString(started).session_start_info.hparams
    return named


def shown_texts(folder: Path, predictions: list[dict[str, object]]) -> None:
    """TensorBoard has the first texts and all lengths of each loader that generates."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    [text] = [
        event.tensor_proto.string_val[0].decode()
        for event in events.Tensors("test/prediction/texts/text_summary")
    ]
    header, _, *rows = text.splitlines()
    assert header == "| prompt | text | reference |"
    expected = {f"| {row['prompt']} | {row['text']} | {row['reference']} |" for row in predictions}
    assert len(rows) > 1
    assert set(rows) <= expected
    [histogram] = [event.histogram_value for event in events.Histograms("test/prediction/lengths")]
    lengths = [len(str(row["text"]).split()) for row in predictions]
    assert (histogram.num, histogram.sum) == (len(lengths), sum(lengths))
    assert events.Histograms("val/prediction/lengths")


def test_train_leaves_its_results_as_files(run_toy: Run, tmp_path: Path) -> None:
    results = run_toy("job_type=train")
    run = tmp_path / "runs" / "toy"
    assert results["test/prediction/exact_match"] == 1.0
    assert json.loads((run / "metrics.json").read_text()) == results
    rows = records(run / "predictions.jsonl")
    assert [row["row"] for row in rows] == list(range(20))
    assert rows[1]["prompt_ids"] == [2]
    assert rows[1]["ids"] == rows[1]["reference_ids"] == [3, 3]
    assert rows[1]["text"] == "3 3"
    assert rows[1]["nfe"] == 1
    assert (run / "config.yaml").exists()
    versions = json.loads((run / "versions.json").read_text())
    assert versions["xlm-core"] == "1.0.0"
    assert versions["device"].startswith("cpu (")
    assert versions["threads"] == torch.get_num_threads()
    assert versions["processes"] == 1
    assert versions["started"] <= versions["ended"]
    assert versions["earlier"] == []
    assert "optimizer.lr: 0.1" in (run / "tensorboard" / "hparams.yaml").read_text()
    assert shown_beside_hyperparameters(run / "tensorboard") == set(results)
    shown_texts(run / "tensorboard", records(run / "predictions.jsonl"))
    trace = records(run / "traces.jsonl")
    assert [row["text"] for row in trace] == [row["text"] for row in rows[:3]]
    assert trace[1]["steps"] == [
        {"step": 1, "tokens": ["3"], "edited": [0], "edits": [insertion(0)]},
        {"step": 2, "tokens": ["3", "3"], "edited": [1], "edits": [insertion(1)]},
    ]
    assert (run / "csv" / "version_0" / "metrics.csv").exists()
    assert list((run / "tensorboard").glob("events*"))
    assert (run / "checkpoints" / "last.ckpt").exists()


def insertion(position: int) -> dict[str, object]:
    return {"kind": "insert", "position": position, "token": "3", "id": 3}


def test_a_second_start_keeps_the_record_of_the_first(run_toy: Run, tmp_path: Path) -> None:
    run_toy("job_type=train", "trainer.max_steps=2")
    path = tmp_path / "runs" / "toy" / "versions.json"
    first = json.loads(path.read_text())
    run_toy("job_type=train", "trainer.max_steps=4")
    second = json.loads(path.read_text())
    first.pop("earlier")
    assert second["earlier"] == [first]
    path.write_text("damaged")
    run_toy("job_type=train", "trainer.max_steps=4")
    assert json.loads(path.read_text())["earlier"] == [{"unreadable": "damaged"}]


def test_a_job_that_was_stopped_has_no_end(run_toy: Run, tmp_path: Path) -> None:
    run_toy("job_type=train")
    run = tmp_path / "runs" / "toy"
    assert not is_unfinished(run)
    with pytest.raises(XLMError):
        run_toy("job_type=train", "+callbacks.x._target_=nothing.There")
    assert is_unfinished(run)


def test_commit_of_a_working_directory(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        name = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-m", "a")
    found = git_state(tmp_path)
    assert found is not None
    assert len(str(found["commit"])) == 40
    assert found["changed"] is False
    (tmp_path / "a").write_text("b")
    assert git_state(tmp_path) == {**found, "changed": True}


def test_likelihood_is_summed_over_tokens(run_toy: Run) -> None:
    results = run_toy("job_type=train")
    # 20 rows of 1, 2, 3, 1, 2, ... tokens: every token has the same cost in this model.
    tokens = sum(i % 3 + 1 for i in range(20))
    per_token = results["test/lm/nll_per_token"]
    assert results["test/lm/nll"] == pytest.approx(per_token * tokens / 20)
    assert results["test/lm/loss"] == pytest.approx(per_token, rel=1e-5)
    assert results["test/lm/perplexity"] == pytest.approx(float(torch.tensor(per_token).exp()), rel=1e-5)
    assert results["test/lm/is_bound"] == 0


def test_eval_and_generate_use_the_same_weights(run_toy: Run, tmp_path: Path) -> None:
    trained = run_toy("job_type=train")
    evaluated = run_toy("job_type=eval")
    generated = run_toy("job_type=generate")
    assert evaluated["test/prediction/seconds_per_sequence"] > 0
    assert repeatable(evaluated) == pytest.approx(repeatable(trained))
    assert generated["test/prediction/exact_match"] == trained["test/prediction/exact_match"]
    assert "test/lm/nll" not in generated
    for job in ("eval", "generate"):
        [folder] = (tmp_path / "runs" / "toy" / job).iterdir()
        assert (folder / "metrics.json").exists()
        assert len(records(folder / "predictions.jsonl")) == 20
        assert (folder / "config.yaml").exists()
    last, other = tmp_path / "runs/toy/checkpoints/last.ckpt", tmp_path / "other.ckpt"
    content = torch.load(last, weights_only=True)
    content["xlm_origin"]["network"] = "another.Class"  # with weights of the same names and shapes
    torch.save(content, other)
    with pytest.raises(
        XLMError, match=r"has weights of another\.Class; the network .* is toy_family\.ToyModel"
    ):
        run_toy("job_type=eval", f"ckpt_path={other}")


def test_eval_without_a_run_says_what_to_do(run_toy: Run) -> None:
    with pytest.raises(XLMError, match="Train it first"):
        run_toy("job_type=eval")


def test_eval_of_a_missing_or_broken_file(run_toy: Run, tmp_path: Path) -> None:
    with pytest.raises(XLMError, match="there is no file"):
        run_toy("job_type=eval", f"ckpt_path={tmp_path / 'none.ckpt'}")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(XLMError, match="not a readable checkpoint"):
        run_toy("job_type=eval", f"ckpt_path={broken}")


def test_a_run_of_another_configuration_is_refused(run_toy: Run) -> None:
    run_toy("job_type=train")
    with pytest.raises(XLMError, match=r"optimizer\.lr: 0\.1 there, 0\.2 now"):
        run_toy("job_type=train", "optimizer.lr=0.2")


def test_a_start_that_failed_before_training_does_not_take_the_name(run_toy: Run, tmp_path: Path) -> None:
    with pytest.raises(XLMError, match="KeyError while reading its rows"):
        run_toy("job_type=train", "task.splits.val=nothing")
    assert (tmp_path / "runs" / "toy" / "config.yaml").exists()
    run_toy("job_type=train", "test_after_training=false")


def test_a_folder_that_is_no_run_is_not_overwritten(run_toy: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(XLMError, match="is not a run"):
        run_toy("job_type=train")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(run_toy: Run, tmp_path: Path) -> None:
    def bias(name: str) -> torch.Tensor:
        path = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
        return torch.load(path, weights_only=True)["state_dict"]["model.bias"]

    schedule = (
        "lr_scheduler=constant",
        "test_after_training=false",
        "+model.dropout=0.3",
        "optimizer.lr=0.01",
    )
    run_toy("job_type=train", "job_name=whole", *schedule, "trainer.max_steps=20")
    run_toy("job_type=train", "job_name=parts", *schedule, "trainer.max_steps=13")
    assert not torch.equal(bias("whole"), bias("parts"))
    run_toy("job_type=train", "job_name=parts", *schedule, "trainer.max_steps=20")
    assert torch.equal(bias("whole"), bias("parts"))


def test_accumulated_micro_batches_equal_one_batch(run_toy: Run, tmp_path: Path) -> None:
    """The rows have different lengths, so a mean of means would differ."""
    common = ("job_type=train", "test_after_training=false", "callbacks.progress=null")
    run_toy(*common, "job_name=one", "datamodule.batch_size=8")
    run_toy(*common, "job_name=two", "datamodule.batch_size=4", "trainer.accumulate_grad_batches=2")
    weights = [
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(weights[0], weights[1])


def test_prepare_data_makes_and_finds(
    run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_toy("job_type=prepare_data")
    assert "prepared in" in capsys.readouterr().out
    run_toy("job_type=prepare_data")
    assert "found in" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_bf16_and_compile_free_options_reach_lightning(run_toy: Run) -> None:
    results = run_toy("job_type=train", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.1")
    assert results["test/prediction/exact_match"] == 1.0


@pytest.mark.parametrize("debug", ["fast", "overfit"])
def test_debug_groups_run(run_toy: Run, debug: str) -> None:
    steps = ("trainer.max_steps=50", "trainer.val_check_interval=50") if debug == "overfit" else ()
    results = run_toy("job_type=train", f"debug={debug}", *steps)
    assert "test/lm/loss" in results
    if debug == "overfit":
        assert results["test/prediction/exact_match"] == 1.0


def test_ema_weights_are_what_is_evaluated(run_toy: Run, tmp_path: Path) -> None:
    run_toy(
        "job_type=train",
        "callbacks=ema",
        "callbacks.ema.decay=0.5",
        "callbacks.progress=null",
        "optimizer.lr=0.01",
    )
    checkpoint = torch.load(tmp_path / "runs/toy/checkpoints/last.ckpt", weights_only=True)
    average = checkpoint["state_dict"]["model.bias"]
    assert not torch.equal(average, checkpoint["current_model_state"]["model.bias"])
