"""Interaction logs, their stream, and the features a generator reads."""
