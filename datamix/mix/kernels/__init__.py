"""What numba compiles (imported by ``core.kernels`` when a kernel is missing); here the numbers that callers
share.
"""

# Why the rule returned; 0 and above: that source needs its next pass.
FULL, DONE, USED_UP = -1, -2, -3
