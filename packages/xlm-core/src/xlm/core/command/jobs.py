"""The jobs of xlm-core, declared without heavy imports."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from omegaconf import DictConfig
from pydantic import BeforeValidator, Field
from typing_extensions import override

from xlm.core.command.job import Job, Tool
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import RunSettings, Settings

if TYPE_CHECKING:
    from xlm.core.training.run import Run


class PrepareData(Job):
    """Download or generate the data set, tokenise it, cache it."""

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.core.evaluation import report
        from xlm.core.training.assembly import make_parts, make_prepared

        report.print_prepared(make_prepared(run, make_parts(run)))
        return {}


class Train(Job):
    """Train, or resume the run of the same name; test the best checkpoint."""

    @override
    def check(self, settings: RunSettings) -> None:
        if settings.from_run is not None and settings.ckpt_path is not None:
            raise XLMError("from and ckpt_path: set one of them; from reads the optimizer state too")
        if settings.test_after_training:
            _check_test(settings, ", or set test_after_training=false")

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.core.command.train import train

        return train(run)


class Evaluate(Job):
    """Evaluate a checkpoint: metrics.json and predictions.jsonl."""

    reads_checkpoint: ClassVar[bool] = True

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        _check_test(settings)

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.core.command.evaluate import evaluate

        return evaluate(run)


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ForkEdit(Settings):
    """A token that is written into a text while it is generated (`fork_edit`)."""

    position: Annotated[int, Field(ge=0)]
    """Position in the text behind the step of the fork, from 0."""
    token: Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
    """The new token, as text."""


class Generate(Job):
    """Write texts to predictions.jsonl; fork=runs/a@3 goes on with a text."""

    reads_checkpoint: ClassVar[bool] = True
    fork: str | None = None
    """`FOLDER@STEP` or `FOLDER:NUMBER@STEP`: continue a text of `FOLDER/traces.jsonl`, the first one if
    it has no number, from a step, with the same noise; null: generate all rows."""
    fork_edit: ForkEdit | None = None
    """A token to write behind this step, which stays: {position: 3, token: x}; null: none."""

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        if not settings.datamodule.only(GENERATION).test:
            raise XLMError("datamodule.test: job_type=generate needs a loader with `uses: [generation]`")
        if self.fork is None and self.fork_edit is not None:
            raise XLMError("fork_edit: which text? Set fork=FOLDER@STEP, such as fork=runs/first@3")

    @override
    def run(self, run: "Run") -> dict[str, float]:
        if self.fork is not None:
            from xlm.core.command.fork_text import fork_text

            return fork_text(run, self.fork, self.fork_edit)
        from xlm.core.command.evaluate import generate

        return generate(run)


class Export(Job):
    """Export a checkpoint as a folder with config, tokenizer and card."""

    reads_checkpoint: ClassVar[bool] = True

    @override
    def choose_config(self, config: DictConfig) -> DictConfig:
        from xlm.core.hub.export import recorded_config

        return recorded_config(config)

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.core.hub.export import export

        return export(run)


class PushToHub(Export):
    """Export, then push to the Hugging Face Hub: hub.repo_id=USER/NAME."""

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        if settings.hub.repo_id is None and not settings.hub.dry_run:
            raise XLMError("hub.repo_id: missing. Set it: +hub.repo_id=USER/NAME (or hub.dry_run=true)")
        if settings.hub.repo_id is not None:
            from xlm.core.hub.repository import check_repo_id  # imports the client of the Hub

            check_repo_id(settings.hub.repo_id, "hub.repo_id")

    @override
    def run(self, run: "Run") -> dict[str, float]:
        from xlm.core.hub.push import push_to_hub

        return push_to_hub(run)


def _check_test(settings: RunSettings, otherwise: str = "") -> None:
    if not settings.datamodule.test:
        raise XLMError(f"datamodule.test: has no loader to evaluate. Add one{otherwise}")


class Doctor(Tool):
    """Check versions, devices, packages and caches; print remedies."""

    @override
    def run(self) -> int:
        from xlm.core.command import doctor

        return doctor.main()
