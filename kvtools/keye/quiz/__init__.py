"""Questions that are generated from clips, and models scored on them."""
