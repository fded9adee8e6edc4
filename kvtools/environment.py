"""Numbers in environment variables, as launchers and users set them. Not here: what they mean (world.py, train/device.py)."""

import os

from kvtools.errors import Usage


def count_in(name: str, *, separators: str = "") -> int | None:
    """The whole number from 0 in a variable, before the first of the separators; None where it is unset or empty.

    Raises Usage, with the variable, for anything else: a rank or a deadline that is read wrong would cost a whole job.
    """
    text = os.environ.get(name, "").strip()
    number = text
    for separator in separators:
        number = number.partition(separator)[0].strip()
    if not text:
        return None
    if not number.isdecimal():  # isdigit holds for ², too, which int does not read
        raise Usage(f"{name}, an environment variable, is {text!r}, and a whole number is needed. Unset it or correct it.")
    return int(number)
