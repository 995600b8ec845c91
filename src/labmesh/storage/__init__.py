"""Where a bank keeps datasets: the seam (base), the filesystem behind it, an in-memory twin."""
