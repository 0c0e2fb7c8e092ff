"""Loads a plugin library into a TensorRT's own plugin registry and prints in JSON what is in it.

A process of its own, ended without destructors: Python's plugins may otherwise be released behind the library.

    python registry.py tensorrt_lean LIBRARY ATTRIBUTES    # {op: {name: value}} in JSON
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys

import numpy as np

module, library, attributes = sys.argv[1:]
trt = importlib.import_module(module)
lines: list[str] = []


class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: object, text: str) -> None:
        lines.append(text)


def fields_of(values: dict[str, object]) -> object:
    kinds = trt.PluginFieldType
    made = []
    for name, value in values.items():
        if isinstance(value, int):
            made.append(trt.PluginField(name, np.array([value], np.int64), kinds.INT64))
        elif isinstance(value, float):
            made.append(trt.PluginField(name, np.array([value], np.float32), kinds.FLOAT32))
        else:
            made.append(trt.PluginField(name, np.frombuffer(str(value).encode(), np.int8), kinds.CHAR))
    return trt.PluginFieldCollection(made)


logger = Logger()
# The lean runtime makes no runtime without a GPU; TensorRT-RTX makes a builder. Either registers the logger.
keep = trt.Builder(logger) if hasattr(trt, "Builder") else trt.Runtime(logger)
registry = trt.get_plugin_registry()
# A library that registers by being opened, or one that TensorRT loads.
loaded = (ctypes.CDLL(library) if "register" in library else registry.load_library(library)) is not None
found = {creator.name: creator for creator in registry.all_creators if creator.plugin_namespace == "vtexport"}
answer: dict[str, object] = {"loaded": loaded, "version": trt.__version__}
answer["creators"] = {
    name: [creator.plugin_version, [field.name for field in creator.field_names]] for name, creator in found.items()
}
created: dict[str, object] = {}
for op, values in json.loads(attributes).items():
    creator = registry.get_creator(op, "1", "vtexport")
    plugin = creator and creator.create_plugin("layer", fields_of(values), trt.TensorRTPhase.BUILD)
    if plugin is None:
        created[op] = None
        continue
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    created[op] = [core.plugin_name, core.plugin_version, core.plugin_namespace, build.num_outputs]
answer["created"] = created
answer["log"] = lines
print(json.dumps(answer), flush=True)
os._exit(0)
