"""What numba compiles; imported by ``core.kernels`` alone, when a kernel is missing."""
