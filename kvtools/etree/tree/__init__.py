"""Trees of devices and the clustering that builds them."""
