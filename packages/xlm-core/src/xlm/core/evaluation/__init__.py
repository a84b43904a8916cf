"""Evaluation of a network: metrics, generated texts, the report at the end of a job."""
