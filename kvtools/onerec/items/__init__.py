"""Item text and vectors, and pairs of items that go together."""
