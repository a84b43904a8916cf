"""Data sets and metrics shared by all model families, one folder per task."""
