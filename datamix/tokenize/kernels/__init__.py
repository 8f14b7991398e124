"""What numba compiles; imported by ``compiled`` alone, when a kernel is missing."""
