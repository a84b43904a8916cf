"""Generations of finished runs, edit by edit: as a page and in the terminal."""
