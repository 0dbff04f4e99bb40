"""One folder per paper; nothing outside a folder knows its name."""
