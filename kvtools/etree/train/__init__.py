"""Training over a tree, and the algorithms it is compared with."""
