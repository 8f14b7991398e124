"""What numba compiles (imported by ``compiled`` alone, when a kernel is missing), and here the number that its caller shares."""

BLOCK = 64  # bytes that are looked at together; so many may be read and written behind the last one
