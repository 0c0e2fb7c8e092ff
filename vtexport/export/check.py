"""Checks that every exported graph must pass before it is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference

from vtexport.bundle.onnxruntime import newest_opset
from vtexport.errors import VtexportError, quoted
from vtexport.export.graph import IR_VERSION, STANDARD_DOMAINS
from vtexport.pruning.onnx_op import DOMAIN

FUNCTION_PREFIX = "Vtx"
_OUT_OF_MEMORY = "bad_alloc"  # how ONNX Runtime says it


def check_graphs(paths: Iterable[Path], notify: Callable[[str], None]) -> None:
    """Runs onnx.checker, the rules below and a load in stock ONNX Runtime on each file.

    ONNX Runtime cannot load graphs that compute in bfloat16, nor an older version those of an opset that it does not
    know; the types of their nodes are held to the operators' definitions instead, and `notify` is told.

    Raises:
        VtexportError: a graph fails; that is a defect of the exporter.
    """
    runtime = find_onnxruntime()
    if runtime is None:
        notify("ONNX Runtime is not installed, so the graphs were checked by onnx.checker alone")
    not_loaded = too_new = 0
    for path in paths:
        try:
            model = onnx.load(path, load_external_data=False)
            bare = _with_weights_as_inputs(model)
            onnx.checker.check_model(bare)
            _check_rules(model)
            if _needs_plugin(model):
                continue
            if _uses_bfloat16(model):
                check_types(bare)
                not_loaded += 1
            elif runtime is not None and _opset(model) > newest_opset(runtime.__version__):
                check_types(bare)
                too_new += 1
            elif runtime is not None:
                _load(runtime, path)
        except Exception as error:
            if _OUT_OF_MEMORY in str(error):
                notify(f"{path.name} passed onnx.checker; this machine has too little memory to load it")
                continue
            raise VtexportError(f"{path.name} was exported wrongly, please report this: {quoted(error)}") from error
    if not_loaded and runtime is not None:
        notify(
            f"{not_loaded} graphs in bfloat16 passed onnx.checker and a check of their types; they were not loaded, "
            "because ONNX Runtime has no bfloat16 on the CPU"
        )
    if too_new and runtime is not None:
        notify(
            f"{too_new} graphs passed onnx.checker and a check of their types; they were not loaded, because ONNX "
            f"Runtime {runtime.__version__} is too old for them"
        )


def check_types(model: onnx.ModelProto) -> None:
    """Infers every type and shape, with functions inlined, and holds them to the operators' definitions.

    Raises:
        onnx.shape_inference.InferenceError: an operator does not take a type in this opset, or two of them disagree.
    """
    flat = onnx.inliner.inline_local_functions(model)
    onnx.shape_inference.infer_shapes(flat, check_type=True, strict_mode=True)


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS))


def _uses_bfloat16(model: onnx.ModelProto) -> bool:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    return onnx.TensorProto.BFLOAT16 in kinds


def _with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without references to files: the checker refuses files with two names.

    While plans are added to a bundle, its weights have one name in the earlier folder and one in the new.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    external = [i for i in copy.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    for initializer in external:
        copy.graph.initializer.remove(initializer)
        value = onnx.helper.make_tensor_value_info(initializer.name, initializer.data_type, initializer.dims)
        copy.graph.input.append(value)
    return copy


def _check_rules(model: onnx.ModelProto) -> None:
    if model.ir_version > IR_VERSION:
        raise ValueError(f"ir_version is {model.ir_version}, loaders of JetPack 6.2 read up to {IR_VERSION}")
    names = [function.name for function in model.functions]
    # TensorRT's parser finds functions by name alone, whatever their domain.
    for name in names:
        if not name.startswith(FUNCTION_PREFIX) or names.count(name) > 1:
            raise ValueError(f"function {name} needs a name of its own that starts with {FUNCTION_PREFIX}")


def _needs_plugin(model: onnx.ModelProto) -> bool:
    """True where a node of ours stands in the graph without its function: that file is for TensorRT with the plugin."""
    bodies = {(function.domain, function.name) for function in model.functions}
    return any(node.domain == DOMAIN and (node.domain, node.op_type) not in bodies for node in model.graph.node)


def find_onnxruntime() -> Any:
    """The onnxruntime module, its telemetry off since `import vtexport`; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


def _load(runtime: Any, path: Path) -> None:
    """Loads with the weights mapped from their file: a 7B model must not fill the memory.

    Without prepacking and constant folding ONNX Runtime has no reason to copy them; with all optimisation off it does.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.disable_prepacking", "1")
    runtime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
