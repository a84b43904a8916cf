"""The state of Lightning's loops in a checkpoint, moved to the boundary between two optimizer steps.

Micro-batches after the last optimizer step have not changed the weights, so a resumed run reads them again;
Lightning's counters would be ahead. Lightning also does not repeat an interrupted validation; here it is
repeated from its start, so that metrics and the best checkpoint are those of an uninterrupted run.
"""

from typing import Any, cast

import lightning


def to_step_boundary(
    checkpoint: dict[str, Any], trainer: lightning.Trainer, step: int, *, validated: bool
) -> None:
    """Rewrite the counters of a checkpoint.

    Args:
        checkpoint: Content to be saved or just loaded; changed in place.
        trainer: The trainer that saves or resumes.
        step: Optimizer steps done.
        validated: Whether the validation due after this step, if any, is done.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = step * trainer.accumulate_grad_batches
    # An integer, the number of batches between two validations (see xlm.core.training.trainer.make_trainer).
    validates_here = trainer.enable_validation and batches % cast("int", trainer.val_check_interval) == 0
    progress = loops["epoch_loop.batch_progress"]
    progress["total"] = _counts(batches)
    progress["current"] = _counts(batches)
    progress["is_last_batch"] = False
    # At a step with a validation Lightning counts the step again when it resumes.
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1 if validates_here else step
    # One batch started and not finished makes Lightning repeat the whole validation.
    is_due = validates_here and not validated
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["total"] = begun if is_due else _counts(0)
    validation["current"] = dict(validation["total"])
    validation["is_last_batch"] = False
    # Lightning does not enter the loop of a complete run, so this counter cannot catch up.
    checkpoint["xlm_lacks_last_validation"] = is_due and step >= trainer.max_steps


def _counts(number: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), number)
