"""Video in: decoding in isolated workers, choosing frames and their size under a token budget, cutting patches."""
