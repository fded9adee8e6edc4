"""The network of Keye-VL: numbers in, numbers out. No file, flag or rank is known here."""
