"""Tests, each of a module or a study."""
