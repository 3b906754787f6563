"""Numeric kernels: arrays in, arrays out; numpy and numba only, no I/O and no units."""
