"""What numba compiles (imported by ``compiled`` alone, when a kernel is missing), and here the number that callers share."""
