"""Marion et al. (ICLR 2024): trained deep ResNets stay discretized neural ODEs."""
