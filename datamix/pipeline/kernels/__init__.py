"""What numba compiles, imported by ``core.kernels`` where machine code is missing."""
