"""Weights in files: bags and Hugging Face directories."""
