"""Barboni, Peyre, Vialard (NeurIPS 2022): ResNets with linearly parameterized residuals."""
