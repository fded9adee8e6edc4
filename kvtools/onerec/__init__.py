"""OneRec (arXiv 2506.13695): items and interactions in, semantic IDs, models and recommendations out."""
