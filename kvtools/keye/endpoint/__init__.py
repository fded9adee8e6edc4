"""Questions to models behind OpenAI-compatible servers: many at once, retried, and answered once for all in a cache file."""
