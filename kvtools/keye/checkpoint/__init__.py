"""Weights at rest: bags and Hugging Face directories."""
