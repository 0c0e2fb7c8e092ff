"""TensorRT engines for tests: ONNX in, an engine built and run on this GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vtexport.backends.trt.cuda_driver import Device
from vtexport.backends.trt.session import NUMPY

# By input, its least, usual and largest shape.
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class TensorRT:
    """The installed tensorrt with a plugin library in its registry.

    Attributes:
        version: (major, minor).
        logged: What it logged as an error since the last build.
    """

    def __init__(self, plugins: Path, device: Device) -> None:
        import tensorrt as trt

        self.trt, self.device = trt, device
        major, minor = trt.__version__.split(".")[:2]
        self.version = int(major), int(minor)
        self.logged: list[str] = []
        logged = self.logged

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    logged.append(text)

        self.logger = Logger()
        self.builder = trt.Builder(self.logger)  # registers the logger, which a plugin's sentences go to
        self.library = trt.get_plugin_registry().load_library(str(plugins))
        assert self.library is not None, self.logged

    def build(self, model: bytes, folder: Path, profile: Profile | None = None) -> tuple[Any, list[str]]:
        """An engine, or None where TensorRT refuses the model, and the names of its plugins' layers.

        `folder` is where the model's external data lies.
        """
        trt = self.trt
        self.logged.clear()
        flags = trt.NetworkDefinitionCreationFlag
        network = self.builder.create_network(1 << int(flags.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(model, path=str(folder / "model.onnx")):
            self.logged += [str(parser.get_error(number)) for number in range(parser.num_errors)]
            return None, []
        layers = [network.get_layer(number) for number in range(network.num_layers)]
        plugins = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
        config = self.builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # it changes which tokens are kept
        if profile is not None:
            shapes = self.builder.create_optimization_profile()
            for name, limits in profile.items():
                shapes.set_shape(name, *limits)
            config.add_optimization_profile(shapes)
        serialized = self.builder.build_serialized_network(network, config)
        if serialized is None:
            return None, plugins
        runtime = trt.Runtime(self.logger)
        return runtime.deserialize_cuda_engine(serialized), plugins

    def run(self, engine: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; bfloat16 is held by its bits, as uint16."""
        trt, device = self.trt, self.device
        context = engine.create_execution_context()
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        given = {name: np.ascontiguousarray(inputs[name]) for name in names if name in inputs}
        addresses: list[int] = []
        try:
            for name, array in given.items():
                assert array.dtype == NUMPY[engine.get_tensor_dtype(name).name], name
                assert context.set_input_shape(name, array.shape), (name, self.logged)
                addresses.append(device.allocate(array.nbytes))
                device.upload(addresses[-1], array)
                context.set_tensor_address(name, addresses[-1])
            assert not context.infer_shapes(), self.logged
            outputs = {
                name: np.empty(tuple(context.get_tensor_shape(name)), NUMPY[engine.get_tensor_dtype(name).name])
                for name in names
                if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
            }
            places = {}
            for name, array in outputs.items():
                places[name] = device.allocate(array.nbytes)
                addresses.append(places[name])
                context.set_tensor_address(name, places[name])
            assert context.execute_async_v3(device.stream), self.logged
            device.synchronize()
            for name, array in outputs.items():
                device.download(array, places[name])
        finally:
            for address in addresses:
                device.free(address)
        return outputs
