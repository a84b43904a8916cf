"""The training loop: the harness on Lightning and what surrounds its steps."""
