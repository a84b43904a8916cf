"""Star graphs: find the path from a source to a goal in a shuffled list of edges."""
