"""Composable single-purpose tools for Keye-VL, OneRec and E-Tree learning. See `kvtools --help`."""

__version__ = "0.1.0"
