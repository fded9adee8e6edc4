"""From conversations, pictures and videos to packed rows of tokens and patches."""
