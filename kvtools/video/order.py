"""File names: which are pictures, and in which order people expect them."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which frame2 comes before frame10."""
    words: list[tuple[int, int, str]] = []
    digits = ""
    for letter in name + "\0":
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        if digits:
            words.append((0, int(digits), ""))
            digits = ""
        words.append((1, 0, letter))
    return words
