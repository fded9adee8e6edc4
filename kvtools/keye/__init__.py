"""Keye-VL: a tower that sees videos at their own size and time, a language model that speaks of them, and their training.

Source: Kwai Keye-VL Technical Report (arXiv 2507.01949) and the published model. Arrays in, arrays out: no files or flags here.
"""
