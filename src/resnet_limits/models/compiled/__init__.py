"""Kernels compiled by numba (extra `fast`), one file a subject; whatever affects them is here."""
