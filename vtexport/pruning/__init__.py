"""Visual-token pruning methods, each in two agreeing forms: an array reference and an ONNX op with a portable body.

Nothing here imports torch, onnx or array-api-compat before a function needs it, so that methods can be listed anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtexport.errors import InputError, MissingDependencyError, quoted
from vtexport.pruning.method import Array, Method, Parameters, Selection, Sizes, as_grid
from vtexport.pruning.registry import get_method, list_methods, make_parameters
from vtexport.pruning.signals import SIGNALS

if TYPE_CHECKING:
    import onnx

    from vtexport.pruning.eager import Applied

__all__ = [
    "Method",
    "Parameters",
    "Selection",
    "apply",
    "diagnostic_model",
    "get_method",
    "list_methods",
    "make_parameters",
    "op_model",
    "select",
]


def apply(model: Any, *, method: str, keep: int | None = None, **parameters: Any) -> Applied:
    """Prunes a Hugging Face LLaVA in eager mode, in place; see `vtexport.pruning.eager.apply`."""
    from vtexport.pruning import eager

    return eager.apply(model, method=method, keep=keep, **parameters)


def select(
    method: str,
    features: Array,
    scores: Array | None = None,
    *,
    keep: int | None,
    grid: tuple[int, int] | None = None,
    keys: Array | None = None,
    similarity_features: Array | None = None,
    text_embeds: Array | None = None,
    image_embeds: Array | None = None,
    **parameters: Any,
) -> Selection:
    """Run a method's reference, which computes in float64.

    `vtexport list methods` says which of the signals a method reads; it refuses the others. All are floating point and
    of the features' kind, NumPy or PyTorch.

    Args:
        method: Name of the method.
        features: [B, c + T, D]; c = 1 and row 0 is CLS if the method takes CLS.
        scores: [B, T] CLS attention summed over heads; used as float32.
        keep: The budget N.
        grid: Rows and columns of patches; a square when left out.
        keys: [B, T, H, K] key projections of the patches by head.
        similarity_features: [B, T, D] mean outputs of the tower's last blocks.
        text_embeds: [B, M, W] embeddings of the question.
        image_embeds: [B, T, W] the patches in the space that they share with the text.
        parameters: The method's parameters.

    Raises:
        UsageError: Unknown method or parameter, or a budget outside the method's range.
        InputError: Wrong shapes or types, missing or unneeded signals, NaN or infinite values.
    """
    from vtexport.pruning.arrays import checked_inputs

    chosen = get_method(method)
    given = make_parameters(chosen, parameters)
    named: dict[str, Array] = {
        "scores": scores,
        "keys": keys,
        "similarity_features": similarity_features,
        "text_embeds": text_embeds,
        "image_embeds": image_embeds,
    }
    wanted = {SIGNALS[name].input: SIGNALS[name] for name in chosen.signals(given)}
    for name, array in named.items():
        if array is None and name in wanted:
            raise InputError(f"{method} needs {name} with these parameters: {wanted[name].about}")
        if array is not None and name not in wanted:
            raise InputError(f"{method} takes no {name} with these parameters")
    signals: dict[str, Array] = {name: named[name] for name in wanted}
    checked_inputs(features, signals)
    rows = int(features.shape[1])
    tokens = rows - int(chosen.takes_cls(given))
    if tokens < 1:
        raise InputError(f"features has shape {tuple(features.shape)}, which leaves no patch after the CLS row")
    grid = as_grid(chosen, tokens, grid)
    keep, resolved = chosen.resolve(given, grid=grid, keep=keep)
    last: dict[str, int] = {}
    if "keys" in signals:
        last["heads"], last["head_width"] = (int(size) for size in signals["keys"].shape[2:])
    if "text_embeds" in signals:
        last["embedding_width"] = int(signals["text_embeds"].shape[-1])
    sizes = Sizes(batch=int(features.shape[0]), grid=grid, width=int(features.shape[2]), keep=keep, **last)
    for name, signal in wanted.items():
        expected = [
            found if isinstance(size, str) else size
            for size, found in zip(signal.shape(sizes), signals[name].shape, strict=True)
        ]
        if list(signals[name].shape) != expected:
            raise InputError(
                f"{name} has shape {tuple(signals[name].shape)} but features {tuple(features.shape)} needs "
                f"{tuple(expected)}"
            )
    return chosen.select(features, signals, sizes=sizes, parameters=resolved)


def op_model(
    method: str,
    *,
    tokens: int,
    width: int,
    keep: int | None,
    batch: int = 1,
    dtype: str = "float32",
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
    head_width: int | None = None,
    embedding_width: int | None = None,
    **parameters: Any,
) -> onnx.ModelProto:
    """A one-node ONNX model of a method's op, with the model-local function of the same name.

    Graph inputs: features [batch, c + tokens, width] of `dtype`, c = 1 if the method takes the CLS row; then the
    signals the method reads, float32 (`vtexport.pruning.signals`). Graph outputs: kept_features [batch, keep, width] of
    `dtype`, keep_indices [batch, keep] int64 (raster patch index, -1 for CLS), and where the method merges, merged
    [batch, keep] bool.

    Args:
        method: Name of the method.
        tokens: Patches per image without CLS, at most 3840.
        width: Feature width.
        keep: The budget N.
        batch: Images per run, fixed in the model; each gets its own, independent result.
        dtype: "float32", "float16" or "bfloat16".
        grid: Rows and columns of patches; a square when left out.
        heads, head_width: Of `keys`; heads of width 64 when left out.
        embedding_width: Of `text_embeds` and `image_embeds`; `width` when left out.
        parameters: The method's parameters.

    Raises:
        UsageError: Unknown method, parameter or dtype, or sizes outside the method's range.
    """
    sizes = {"batch": batch, "width": width, "heads": heads, "head_width": head_width}
    sizes |= {"embedding_width": embedding_width}
    return _model(method, {"tokens": tokens, "grid": grid, **sizes}, keep, dtype, parameters, diagnostics=False)


def diagnostic_model(
    method: str,
    *,
    tokens: int,
    width: int,
    keep: int | None,
    batch: int = 1,
    dtype: str = "float32",
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
    head_width: int | None = None,
    embedding_width: int | None = None,
    **parameters: Any,
) -> onnx.ModelProto:
    """`op_model` whose function also returns the method's intermediate values (`Method.diagnostics`), for tests."""
    sizes = {"batch": batch, "width": width, "heads": heads, "head_width": head_width}
    sizes |= {"embedding_width": embedding_width}
    return _model(method, {"tokens": tokens, "grid": grid, **sizes}, keep, dtype, parameters, diagnostics=True)


def _model(
    method: str, sizes: dict[str, Any], keep: int | None, dtype: str, parameters: dict[str, Any], *, diagnostics: bool
) -> onnx.ModelProto:
    chosen = get_method(method)
    given = make_parameters(chosen, parameters)
    try:
        from vtexport.pruning.op import build
    except ImportError as error:
        raise MissingDependencyError(
            f"making an ONNX model takes the package onnx, which is not installed ({quoted(error)}); "
            "run pip install 'vtexport[export]'"
        ) from error
    return build(chosen, given, sizes, keep=keep, dtype=dtype, diagnostics=diagnostics)
