"""Pieces of ONNX graphs that everything which writes graphs shares."""
