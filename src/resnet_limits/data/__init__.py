"""Data sets: explicit generators in, tensors out."""
