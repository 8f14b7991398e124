"""What numba compiles (imported by ``core.kernels`` when a kernel is missing); here the numbers callers share."""

WINDOW_BYTES = 1 << 15  # of a text that are looked at together
LANES = 64  # shingles are padded to a multiple of this, so that no loop has a scalar tail
PER_PASS = 4  # permutations that share one walk over the shingles

SEPARATOR, WORD, SINGLE = 0, 1, 2  # classes of characters
REMOVABLE, COUNTS = 1, 2  # bits of a role: may be removed; removes others when kept
STAYS, EXACT, NEAR = 0, 1, 2
