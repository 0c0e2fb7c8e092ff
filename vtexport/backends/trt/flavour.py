"""Differences between TensorRT and TensorRT-RTX, whose Python interfaces are alike."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from vtexport.errors import MissingDependencyError


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries.

    Attributes:
        title: As NVIDIA calls it.
        module: Of Python.
        install: The command that installs it.
        names_capabilities: True where a builder can be told the compute capabilities that an engine is for; another
            builds for the GPU that it runs on.
        float32: False where it has no float32 attention for lengths that vary.
        opened_as: Name by which its ONNX parser opens the library itself for a plugin's node; empty where it does not.
    """

    title: str
    module: str
    install: str
    names_capabilities: bool
    float32: bool
    opened_as: str = ""

    def check_installed(self) -> None:
        """Refuses to begin where the library is not there.

        Raises:
            MissingDependencyError: with how to get it.
        """
        if importlib.util.find_spec(self.module) is None:
            raise MissingDependencyError(f"the Python package {self.module} is not installed; run {self.install}")

    def load(self) -> Any:
        """The library's module."""
        return importlib.import_module(self.module)


TENSORRT = Flavour("TensorRT", "tensorrt", "pip install tensorrt", names_capabilities=False, float32=True)
TENSORRT_RTX = Flavour(
    "TensorRT-RTX",
    "tensorrt_rtx",
    "pip install 'vtexport[tensorrt-rtx]'",
    names_capabilities=True,
    float32=False,
    opened_as="libtensorrt_rtx.so",
)
# By the name of the module, as the process that builds an engine is told it
FLAVOURS = {flavour.module: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
