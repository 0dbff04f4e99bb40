"""Data sets: synthetic ones from explicit generators, and images."""
