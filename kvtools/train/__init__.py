"""One way to train: the loop, its rates, its state on disk, and what it costs. Models bring a loss; nothing here knows them."""
