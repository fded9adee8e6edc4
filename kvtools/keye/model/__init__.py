"""Keye-VL's networks: arrays in, arrays out; no files, options or ranks."""
