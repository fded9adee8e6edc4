"""The network of OneRec and the search over its codes: numbers in, numbers out. No file, flag or rank is known here."""
