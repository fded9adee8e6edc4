"""OneRec: semantic IDs, and the models that generate them. Arrays in, arrays out; no files, flags or ranks."""
