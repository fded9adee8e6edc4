"""Labelled samples and how devices hold them."""
