"""Lu et al. (ICML 2020): depth-sorted against vanilla ResNets."""
