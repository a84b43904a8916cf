"""What a run leaves on the disk: its folder, its checkpoints, weights read back."""
