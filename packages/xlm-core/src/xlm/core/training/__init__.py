"""Training: the harness on Lightning, its callbacks and its trainer."""
