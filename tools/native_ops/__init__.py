"""Cases for the native ops with the answers that are known, and what calls a library and compares.

The tests and `benchmarks/gpu_check` take them from here.
"""
