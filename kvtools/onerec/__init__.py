"""OneRec (arXiv 2506.13695): vectors and pairs of items, semantic IDs, and the models that generate them.

Algorithms take arrays and give arrays; the readers of items and interactions take open files. No flags, no ranks.
"""
