"""Runtimes of target recipes that this folder serves."""

from __future__ import annotations

from vtexport.backends.base import Runtime
from vtexport.backends.onnxruntime.backend import OnnxRuntimeBackend

RUNTIMES = {"onnxruntime": Runtime("ONNX Runtime", open=OnnxRuntimeBackend, has_engines=False)}
