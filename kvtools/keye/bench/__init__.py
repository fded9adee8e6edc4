"""Benchmarks: their questions, how answers are read from texts, and what counts as right."""
