"""What numba compiles (imported by ``compiled`` alone, when a kernel is missing), and here the numbers that callers share."""

# Why the rule returned; 0 and above: that source needs its next pass.
FULL, DONE, USED_UP = -1, -2, -3
