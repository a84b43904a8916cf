"""The job ``audit``: the report of a run's slots, printed and written."""

import json
from typing import TYPE_CHECKING

from xlm.core.command.cli import show
from xlm.core.config.errors import XLMError
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.run import Run
from xlm.eval.auditing.slots import Effort, audit_slots

if TYPE_CHECKING:
    from xlm.eval.jobs import Audit


def audit_run(run: Run, job: "Audit") -> dict[str, float]:
    """Audit the slots of a run, and write ``audit.md`` and ``audit.json``.

    Raises:
        XLMError: If a length is above ``max_length``, or a claim is wrong.
    """
    lengths = job.lengths or [job.max_length]
    if max(lengths) > job.max_length:
        raise XLMError(f"lengths: got {lengths}, above max_length={job.max_length}")
    effort = Effort(
        num_draws=job.num_draws,
        num_samples=job.num_samples,
        learn_steps=job.learn_steps,
        tolerance=job.tolerance,
    )
    report = audit_slots(run, max_length=job.max_length, lengths=lengths, effort=effort)
    folder = RunFolder(run.folder).start_job("audit", run.record)
    text = report.markdown()
    (folder / "audit.md").write_text(text + "\n", encoding="utf-8")
    (folder / "audit.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    show(f"{text}\n\nfiles\n  {folder / 'audit.md'}\n  {folder / 'audit.json'}")
    if report.mistakes:
        raise XLMError(
            "audit: wrong: " + "; ".join(f"{each.claim}: {each.measured}" for each in report.mistakes)
        )
    return {"audit/mistakes": float(len(report.mistakes)), "audit/checks": float(len(report.checks))}
