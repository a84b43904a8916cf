"""Checks of losses and samplers on languages so small that every text is enumerated."""
