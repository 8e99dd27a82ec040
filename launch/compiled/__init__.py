"""A training step compiled for accelerators that are not attached.

Nothing here is measured: bytes and memory are the compiler's, times are bounds or its estimates.
"""
