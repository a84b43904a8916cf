"""What is computed from a network: metrics, generated texts, the report at the end of a job."""
