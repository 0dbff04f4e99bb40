"""Chen et al. (ICLR 2024): generalization of a mean-field neural ODE."""
