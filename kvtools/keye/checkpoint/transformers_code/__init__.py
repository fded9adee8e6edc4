"""Source files that go into a model's directory, so that transformers loads it; kvtools itself never imports them."""
