"""Engines that compute models and their gradients."""
