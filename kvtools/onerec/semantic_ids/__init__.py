"""Vectors to semantic IDs: codebooks, collisions, quality."""
