"""Pruning ops; one file each: settings, array reference and ONNX function body."""
