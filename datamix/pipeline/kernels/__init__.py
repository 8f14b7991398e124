"""What numba compiles (imported by ``compiled`` alone, when a kernel is missing), and here the number that callers share."""

IGNORED = -100  # the label of a token that is not trained
