"""Tasks of the lm-evaluation-harness, scored with the slots of a run."""
