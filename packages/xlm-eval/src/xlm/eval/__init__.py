"""Comparison of models, and checks of their numbers."""
