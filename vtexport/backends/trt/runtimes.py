"""Runtimes of target recipes that this folder serves."""

from __future__ import annotations

from vtexport.backends.base import Runtime
from vtexport.backends.trt.compile import EngineCompiler
from vtexport.backends.trt.flavour import TENSORRT, TENSORRT_RTX

RUNTIMES = {
    # An engine of TensorRT is built on the device that runs it, which vtexport does not do yet.
    "tensorrt": Runtime(TENSORRT.title),
    "tensorrt-rtx": Runtime(TENSORRT_RTX.title, compile=EngineCompiler(TENSORRT_RTX)),
}
