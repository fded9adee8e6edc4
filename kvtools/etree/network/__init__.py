"""Delays between devices and the time that messages take."""
