"""Has TensorRT-RTX load a plugin library, parse models and build engines, and prints in JSON what came of it.

A process of its own, because LD_LIBRARY_PATH is read when one starts, and a parser that does not find RTX by its
unversioned name ends it.

    python rtx.py LIBRARY CASES    # a JSON file: [{"model": path, "profiles": [{input: [least, usual, most]}]}]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

library, cases = sys.argv[1:]
logged: list[str] = []


class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: object, text: str) -> None:
        if severity <= trt.ILogger.ERROR:  # type: ignore[operator]
            logged.append(text)


def build(case: dict[str, object]) -> dict[str, object]:
    logged.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(case["model"]):
        return {"parsed": False, "errors": [parser.get_error(n).desc() for n in range(parser.num_errors)] + logged}
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    outputs = [network.get_output(number) for number in range(network.num_outputs)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for shapes in case["profiles"]:  # type: ignore[attr-defined]
        profile = builder.create_optimization_profile()
        for name, limits in shapes.items():
            profile.set_shape(name, *limits)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is not None:
        Path(f"{case['model']}.engine").write_bytes(engine)
    return {
        "parsed": True,
        "layers": [layer.type.name for layer in layers],
        "outputs": {each.name: [each.dtype.name, list(each.shape)] for each in outputs},
        "built": engine is not None,
        "errors": list(logged),
    }


logger = Logger()
builder = trt.Builder(logger)
loaded = trt.get_plugin_registry().load_library(library) is not None
answer: dict[str, object] = {"version": trt.__version__, "loaded": loaded, "log": list(logged)}
answer["cases"] = [build(case) for case in json.loads(Path(cases).read_text())]
print(json.dumps(answer))
