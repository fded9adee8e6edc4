"""Figures: arrays and logs in, an image out. Not here: what the numbers mean to a model."""
