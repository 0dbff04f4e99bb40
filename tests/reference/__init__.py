"""Plain implementations of the models, which engines are tested and timed against."""
