"""Visual-token pruning methods, each in two agreeing forms: an array reference and an ONNX op with a portable body.

Nothing here imports torch, onnx or array-api-compat before a function needs it, so that methods can be listed anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vtexport.pruning.none
import vtexport.pruning.prunesid  # noqa: F401  (registers the methods)
from vtexport.errors import InputError
from vtexport.pruning.method import Array, Method, Parameters, Selection
from vtexport.pruning.registry import get_method, list_methods, make_parameters

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Method",
    "Parameters",
    "Selection",
    "diagnostic_model",
    "get_method",
    "list_methods",
    "make_parameters",
    "op_model",
    "select",
]


def select(
    method: str, features: Array, scores: Array | None = None, *, keep: int | None, **parameters: Any
) -> Selection:
    """Run a method's reference, which computes in float64.

    Args:
        method: Name of the method.
        features: [B, c + T, D] floating point, NumPy or PyTorch; c = 1 and row 0 is CLS if the method takes CLS.
        scores: [B, T] CLS attention summed over heads, if the method asks for it; used as float32.
        keep: The budget N.
        parameters: The method's parameters.

    Raises:
        UsageError: Unknown method or parameter, or a budget outside the method's range.
        InputError: Wrong shapes or types, missing or unneeded scores, NaN or infinite values.
    """
    from vtexport.pruning.arrays import checked_inputs

    chosen = get_method(method)
    given = make_parameters(chosen, parameters)
    needed = chosen.signals(given)
    if (scores is None) == bool(needed):
        wish = "needs scores [batch, tokens], the CLS attention summed over heads" if needed else "takes no scores"
        raise InputError(f"{method} {wish} with these parameters")
    _, batch, rows, _ = checked_inputs(features, scores)
    tokens = rows - int(chosen.takes_cls(given))
    if tokens < 1:
        raise InputError(f"features has shape {tuple(features.shape)}, which leaves no patch after the CLS row")
    if scores is not None and tuple(scores.shape) != (batch, tokens):
        raise InputError(
            f"scores has shape {tuple(scores.shape)} but features {tuple(features.shape)} needs ({batch}, {tokens})"
        )
    keep, resolved = chosen.resolve(given, tokens=tokens, keep=keep)
    return chosen.select(features, scores, keep=keep, parameters=resolved)


def op_model(
    method: str,
    *,
    tokens: int,
    width: int,
    keep: int | None,
    batch: int = 1,
    dtype: str = "float32",
    **parameters: Any,
) -> onnx.ModelProto:
    """A one-node ONNX model of a method's op, with the model-local function of the same name.

    Graph inputs: features [batch, c + tokens, width] of `dtype`, c = 1 if the method takes the CLS row; scores
    [batch, tokens] float32 if the method needs them. Graph outputs: kept_features [batch, keep, width] of `dtype`,
    keep_indices [batch, keep] int64 (raster patch index, -1 for CLS).

    Args:
        method: Name of the method.
        tokens: Patches per image without CLS, at most 3840.
        width: Feature width.
        keep: The budget N.
        batch: Images per run, fixed in the model; each gets its own, independent result.
        dtype: "float32", "float16" or "bfloat16".
        parameters: The method's parameters.

    Raises:
        UsageError: Unknown method, parameter or dtype, or sizes outside the method's range.
    """
    return _model(method, tokens, width, keep, batch, dtype, parameters, diagnostics=False)


def diagnostic_model(
    method: str,
    *,
    tokens: int,
    width: int,
    keep: int | None,
    batch: int = 1,
    dtype: str = "float32",
    **parameters: Any,
) -> onnx.ModelProto:
    """`op_model` whose function also returns the method's intermediate values (`Method.diagnostics`), for tests."""
    return _model(method, tokens, width, keep, batch, dtype, parameters, diagnostics=True)


def _model(
    method: str,
    tokens: int,
    width: int,
    keep: int | None,
    batch: int,
    dtype: str,
    parameters: dict[str, Any],
    *,
    diagnostics: bool,
) -> onnx.ModelProto:
    chosen = get_method(method)
    given = make_parameters(chosen, parameters)
    from vtexport.pruning.op import build

    return build(
        chosen, given, tokens=tokens, width=width, keep=keep, batch=batch, dtype=dtype, diagnostics=diagnostics
    )
