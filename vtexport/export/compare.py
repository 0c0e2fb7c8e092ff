"""The written vision tower beside PyTorch's: features of one image, from the checkpoint's own files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vtexport.bundle.onnxruntime import newest_opset
from vtexport.checkpoint.safetensors_index import WEIGHT_FORMATS, TensorEntry
from vtexport.errors import VtexportError
from vtexport.export.check import find_onnxruntime
from vtexport.models.parts import TOWER, Tower

# Relative errors that rounding alone stays under by far.
BOUNDS = {"float32": 1e-4, "float16": 2e-2}


def reason_not_to_compare(dtype: str, opset: int) -> str | None:
    """The reason why features of a graph cannot be compared here, as a clause; None where they can.

    Args:
        dtype: of the bundle.
        opset: of the vision graph.
    """
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    runtime = find_onnxruntime()
    if runtime is None:
        return "ONNX Runtime is not installed"
    if dtype not in BOUNDS:
        return f"ONNX Runtime has no {dtype} on the CPU"
    if opset > newest_opset(runtime.__version__):
        return f"ONNX Runtime {runtime.__version__} is too old for the graph"
    return None


def feature_error(
    graph: Path, tower: Tower, config: Any, tensors: Mapping[str, TensorEntry], pixels: np.ndarray, dtype: str
) -> float | None:
    """The error of a vision graph's features against PyTorch's in float32: |difference| / |features|, by norm.

    Neither side holds the tower's weights in memory at once. None where the graph's features are not finite: the build
    says which weights do not fit the precision, and running such a bundle is refused.

    Args:
        graph: a vision graph that ONNX Runtime can load.
        tower: the part that wrote it.
        config: transformers' configuration of the tower.
        tensors: the checkpoint's, by canonical name.
        pixels: [1, 3, H, W] float32.
        dtype: of the graph's weights.

    Raises:
        VtexportError: the features differ by more than rounding does.
    """
    expected = pytorch_features(tower, config, tensors, pixels)
    found = _graph_features(graph, pixels)
    if np.isfinite(expected).all() and not np.isfinite(found).all():
        return None
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not difference <= BOUNDS[dtype]:  # NaN, too
        raise VtexportError(
            f"the vision tower's features differ from PyTorch's by {difference:.2g} of their size, and rounding in "
            f"{dtype} stays under {BOUNDS[dtype]:g}; nothing is built, please report this with the model's name"
        )
    return difference


def pytorch_features(tower: Tower, config: Any, tensors: Mapping[str, TensorEntry], pixels: np.ndarray) -> np.ndarray:
    """Features [1, cls + T, F] float32 of transformers' own module with the checkpoint's weights.

    They are mapped from their files, and a block has them in float32 only while it computes.
    """
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        module = AutoModel.from_config(config).eval()
    (blocks,) = (each for each in module.modules() if isinstance(each, torch.nn.ModuleList))
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        entry = tensors.get(TOWER + name)
        # What stands behind the last layer that is read need not be stored, and is not read here either.
        stored = torch.zeros(parameter.shape) if entry is None else _mapped(entry)
        _put(module, name, torch.nn.Parameter(stored, requires_grad=False))
    for name, buffer in dict(module.named_buffers()).items():
        assert name.endswith("position_ids"), f"the module has a buffer {name} of unknown values"
        _put(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    within = {parameter for block in blocks for parameter in block.parameters()}
    for each in module.parameters():
        if each not in within:
            each.data = each.data.float()
    for block in blocks:
        _widen_while_it_computes(block)
    with torch.inference_mode():
        states = module(pixel_values=torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    features: np.ndarray = torch.cat([states[layer] for layer in tower.feature_layers], -1).numpy()
    return features


def _mapped(entry: TensorEntry) -> Any:
    """A stored tensor as PyTorch's, in its stored type, on the mapped file."""
    import torch

    kind = WEIGHT_FORMATS[entry.dtype]
    # Copy on write: PyTorch warns of memory that it must not write to.
    values = np.memmap(entry.file, kind.numpy, "c", offset=entry.offset, shape=entry.shape)
    tensor = torch.from_numpy(values.view(np.int16) if kind.name == "bfloat16" else values)
    return tensor.view(torch.bfloat16) if kind.name == "bfloat16" else tensor


def _put(module: Any, name: str, value: Any) -> None:
    """Sets a parameter or buffer; PyTorch refuses to assign what has another type or device."""
    owner, _, own = name.rpartition(".")
    holder = module.get_submodule(owner)
    (holder._parameters if own in holder._parameters else holder._buffers)[own] = value


def _widen_while_it_computes(block: Any) -> None:
    parameters = list(block.parameters())
    stored = [parameter.data for parameter in parameters]

    def widen(*_: object) -> None:
        for parameter, value in zip(parameters, stored, strict=True):
            parameter.data = value.float()

    def restore(*_: object) -> None:
        for parameter, value in zip(parameters, stored, strict=True):
            parameter.data = value

    block.register_forward_pre_hook(widen)
    block.register_forward_hook(restore)


def _graph_features(graph: Path, pixels: np.ndarray) -> np.ndarray:
    runtime = find_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    # Weights stay mapped, as in `check`. Half precision is widened by nodes that ONNX Runtime puts in: in order of
    # priority each runs where its value is needed, and without an arena the value is gone after that. For the tower of
    # LLaVA-1.5 in float16 that is 0.7 GB instead of 1.5.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    session = runtime.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    features: np.ndarray = session.run(["features"], {"pixel_values": pixels})[0]
    return features
