"""`make gpu-check`: builds the CUDA kernels, checks their answers and times them, on a machine with an NVIDIA GPU.

Needs Python, numpy, PyTorch and nvcc as they are there; nothing is fetched. docs/gpu-check.md says what it measures.
"""
