"""Recommendations and their evaluation, and the baselines beside them."""
