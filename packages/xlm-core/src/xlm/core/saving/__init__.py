"""The files of a run: its folder, its checkpoints, reading weights."""
