"""Executable replications of four theory papers on deep residual networks as ODEs."""
