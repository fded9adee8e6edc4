"""Pictures: arrays in, the bytes of an image out. Not here: what the arrays mean to a model."""
