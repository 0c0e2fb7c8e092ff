"""The pruning op of a method alone, as a one-node ONNX model for other toolkits and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtexport.errors import MissingDependencyError, UsageError, quoted
from vtexport.pruning.reference import placed_op
from vtexport.pruning.registry import get_method, make_options
from vtexport.pruning.types import MOST_TOKENS, Sizes

if TYPE_CHECKING:
    import onnx

_CLIP_HEAD = 64  # width of CLIP's heads, in every size


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
    head_dim: int | None = None,
    head_width: int | None = None,
    embedding_width: int | None = None,
    companions: Mapping[str, int] | None = None,
    **parameters: Any,
) -> onnx.ModelProto:
    """A one-node ONNX model of a method's op before the language model, with the model-local function of the same name.

    Graph inputs: features [batch, c + tokens, width] of `dtype`, c = 1 if the method takes the CLS row; then the
    signals the method reads, float32 (`vtexport.pruning.signals`), and the companions. Graph outputs: kept_features
    [batch, keep, width] of `dtype`, keep_indices [batch, keep] int64 (raster patch index, -1 for CLS), where the method
    merges, merged [batch, keep] bool, and kept_NAME [batch, keep, *] of every companion.

    Args:
        method: Name of the method.
        tokens: Patches per image without CLS, at most 3840.
        width: Feature width.
        keep: The budget N.
        batch: Images per run, fixed in the model; each gets its own, independent result.
        dtype: "float32", "float16" or "bfloat16".
        grid: Rows and columns of patches; a square when left out.
        heads, head_dim: Of `keys`; heads of width 64 when left out.
        head_width: The earlier name of `head_dim`.
        embedding_width: Of `text_embeds` and `image_embeds`; `width` when left out.
        companions: Widths by name of tensors of `dtype` whose rows run beside those of the features; they are gathered
            by the same indices.
        parameters: The method's options.

    Raises:
        UsageError: Unknown method, option or dtype, sizes outside the method's range, or a companion's name that the
            op's own tensors have.
    """
    sizes = {"tokens": tokens, "width": width, "batch": batch, "heads": heads, "embedding_width": embedding_width}
    if head_dim is not None and head_width is not None:
        raise UsageError(f"head_width={head_width!r} is the earlier name of head_dim={head_dim!r}; leave it out")
    sizes["head_dim"] = head_width if head_dim is None else head_dim
    return _model(method, sizes, grid, keep, dtype, parameters, companions=companions)


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
    head_dim: int | None = None,
    embedding_width: int | None = None,
    **parameters: Any,
) -> onnx.ModelProto:
    """`op_model` whose function also returns the op's intermediate values (`Op.diagnostics`), for tests."""
    sizes = {"tokens": tokens, "width": width, "batch": batch, "heads": heads, "embedding_width": embedding_width}
    sizes["head_dim"] = head_dim
    return _model(method, sizes, grid, keep, dtype, parameters, diagnostics=True)


def _model(
    method: str,
    given: Mapping[str, int | None],
    grid: tuple[int, int] | None,
    keep: int | None,
    dtype: str,
    parameters: Mapping[str, Any],
    *,
    diagnostics: bool = False,
    companions: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    chosen = get_method(method)
    options = make_options(chosen, parameters)
    try:
        from vtexport.pruning.onnx_op import model_of_op
    except ImportError as error:
        raise MissingDependencyError(
            f"making an ONNX model takes the package onnx, which is not installed ({quoted(error)}); "
            "run pip install 'vtexport[export]'"
        ) from error
    for name, value in (*given.items(), *(companions or {}).items()):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{name}={value!r} is not allowed; give a whole number from 1")
    tokens, width = given["tokens"] or 0, given["width"] or 0
    if tokens > MOST_TOKENS:
        raise UsageError(
            f"tokens={tokens} is not allowed; one op takes at most {MOST_TOKENS} tokens, so split the image"
        )
    placed, grid = placed_op(method, options, tokens + int(chosen.takes_cls(options)), grid, keep)
    heads = given["heads"] or max(1, width // _CLIP_HEAD)
    sizes = Sizes(
        batch=given["batch"] or 1,
        grid=grid,
        width=width,
        keep=placed.keep,
        heads=heads,
        head_dim=given["head_dim"] or -(-width // heads),
        embedding_width=given["embedding_width"] or width,
    )
    name = f"{method}_keep{placed.keep}"
    return model_of_op(placed.op, sizes, dtype=dtype, diagnostics=diagnostics, companions=companions, name=name)
