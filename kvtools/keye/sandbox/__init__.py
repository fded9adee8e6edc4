"""Code that a model wrote, run in isolation: pictures in, pictures and printed text out."""
