"""Training for all models: the loop, its learning rates, its state on disk, and its cost. Models bring a loss."""
