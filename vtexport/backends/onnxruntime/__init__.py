"""Stock ONNX Runtime on the CPU or a CUDA device."""
