"""The jobs of xlm-eval, declared without heavy imports."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field
from typing_extensions import override

from xlm.core.command.job import Job, Tool
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import RunSettings
from xlm.eval.sweep import check_one_process, check_sweep

if TYPE_CHECKING:
    from xlm.core.training.run import Run


def _names(given: object) -> object:
    """A list of names from ``a,b`` or ``[a,b]``, also if the names have special characters of YAML."""
    if given is None:
        return []
    if isinstance(given, str):
        names = (name.strip().strip("'\"") for name in given.removeprefix("[").removesuffix("]").split(","))
        return [name for name in names if name]
    return [str(name) for name in cast("list[object]", given)] if isinstance(given, list) else [str(given)]


class Compare(Tool):
    """Tables, intervals and plots of runs and seeds: 'runs=[runs/a_s*,runs/b]'."""

    runs: Annotated[list[str], BeforeValidator(_names)] = Field(default_factory=list[str])
    """Folders of runs, or patterns of them."""
    output_dir: str = "runs"
    """Parent folder of the comparison, which is written to ``compare/TIME``."""
    quality: str | None = None
    """Metric of the vertical axis of plots, such as ``prediction/exact_match``; null: the monitored one."""

    @override
    def run(self) -> int:
        from xlm.eval.compare import compare

        compare(self.runs, self.output_dir, self.quality)
        return 0


class View(Tool):
    """Replay generations edit by edit, on a page or here: 'runs=[runs/a]'."""

    runs: Annotated[list[str], BeforeValidator(_names)] = Field(default_factory=list[str])
    """Folders of runs or of later evaluations, shown side by side where they have the same prompt."""
    output_dir: str = "runs"
    """Parent folder of the page, which is written to ``view/TIME``."""
    terminal: bool = False
    """Play in the terminal instead."""
    seconds: Annotated[float, Field(ge=0)] = 0.4
    """Time of a step in the terminal."""

    @override
    def run(self) -> int:
        from xlm.eval.viewing.job import view

        view(self.runs, self.output_dir, in_terminal=self.terminal, seconds=self.seconds)
        return 0


class Audit(Job):
    """Check loss, likelihood and sampler by enumeration of a tiny language."""

    num_tokens: Annotated[int, Field(ge=2, le=8)] = 3
    """Tokens of the tiny vocabulary, beside the special ones."""
    max_length: Annotated[int, Field(ge=1, le=5)] = 3
    """Longest text in tokens; every text is enumerated."""
    lengths: list[Annotated[int, Field(ge=1)]] | None = None
    """Lengths of the texts of the language that is learnt; null: only the longest."""
    num_draws: Annotated[int, Field(ge=2)] = 200
    """Draws of noise for each text."""
    num_samples: Annotated[int, Field(ge=100)] = 4000
    """Texts that the sampler draws."""
    learn_steps: Annotated[int, Field(ge=0)] = 600
    """Optimizer steps with which a network learns the language; 0: its minimiser is not checked."""
    tolerance: Annotated[float, Field(gt=0)] = 0.3
    """Nats by which the likelihood of the learnt network may exceed the entropy; more steps need less."""

    @override
    def choose_config(self, config: DictConfig) -> DictConfig:
        """The config with a tiny vocabulary in the place of the task's."""
        chosen = config.copy()
        tokenizer = {
            "_target_": "xlm.eval.auditing.tiny_tokenizer.TinyTokenizer",
            "num_tokens": self.num_tokens,
        }
        OmegaConf.update(chosen, "task.tokenizer", tokenizer, merge=False)
        OmegaConf.update(chosen, "task.max_target_length", self.max_length)
        if OmegaConf.select(chosen, "datamodule.collator.max_length") is not None:  # may be a number
            OmegaConf.update(chosen, "datamodule.collator.max_length", self.max_length)
        return chosen

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.eval.auditing.job import audit_run

        return audit_run(run, self)


class Frontier(Job):
    """A checkpoint at many settings: 'sweep={predictor.temperature: [0.7, 1]}'."""

    reads_checkpoint: ClassVar[bool] = True
    sweep: dict[str, list[Any]] = Field(default_factory=dict[str, list[Any]])
    """Values by key of ``predictor`` or ``sampler_likelihood``; every combination is evaluated."""

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        check_sweep(self.sweep, settings)

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.eval.frontier import evaluate_grid

        return evaluate_grid(run, self.sweep)


class LMEval(Job):
    """Tasks of the lm-evaluation-harness: 'tasks=[lambada_openai]'."""

    reads_checkpoint: ClassVar[bool] = True
    tasks: Annotated[list[str], BeforeValidator(_names)] = Field(default_factory=list[str])
    """Names of tasks or groups of the harness, or of the files in ``include_path``."""
    include_path: str | None = None
    """Folder with tasks of your own, as the harness's YAML files; their Python code runs."""
    context: Literal["prefix", "prompt"] = "prefix"
    """How the model was trained to see a context: as the beginning of its text, or as the prompt of a row."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a text, with its context unless that is a prompt; null: `task.max_target_length`."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question; null: as the task says."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Documents of each task; null: all."""
    gen_kwargs: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Replace the task's own: until, max_gen_toks, do_sample, temperature, top_k, top_p."""
    bootstrap_iters: Annotated[int, Field(ge=0)] = 1000
    """Replicates for the standard errors of metrics that are no means."""
    log_samples: bool = True
    """Whether to write each document with its requests and answers."""

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        if not self.tasks:
            raise XLMError(
                "tasks: missing. Name tasks of the lm-evaluation-harness: 'tasks=[lambada_openai]'"
            )
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise XLMError(f"include_path: there is no folder {self.include_path}")
        if find_spec("lm_eval") is None:
            raise XLMError('job_type=lm_eval needs an extra: uv pip install "xlm-eval[lm-eval]"')
        check_one_process(settings)

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.eval.field_tasks.job import evaluate_tasks

        return evaluate_tasks(run, self)
