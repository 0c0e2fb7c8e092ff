"""Types that ops and methods share: tensors and sizes of an op, places in a model, what an op kept.

The lowest floor of this room: nothing here imports another module of it, torch or onnx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from vtexport.errors import UsageError

Array = Any  # a NumPy array or a PyTorch tensor; the array API has no common base class

# Sizes are held in float32 inside the ONNX functions, products of two sizes included, and TensorRT's TopK stops here.
MOST_TOKENS = 3840

# Letters of the axes in `Tensor.axes` and `Signal.axes`.
AXES = {
    "1": "1",
    "B": "batch",
    "T": "tokens",
    "N": "tokens kept",
    "D": "width",
    "H": "heads",
    "G": "key and value heads",
    "K": "head width",
    "E": "width of the embeddings",
    "M": "text tokens",
    "S": "rows of the sequence",
    "R": "rows left of the sequence",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of an op.

    Attributes:
        name: As in the ONNX node.
        axes: A letter of `AXES` an axis. Intermediate values also have K groups and C clusters.
        dtype: "float32", "int64", "bool", or "features", the type of the rows that the op prunes.
    """

    name: str
    axes: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Sizes:
    """Fixed sizes that one op is built for.

    Attributes:
        batch: Images, B.
        grid: Rows and columns of patches; T is their product. One row where an op is told a number of tokens alone.
        width: Width D of the rows that the op prunes.
        keep: Rows it keeps, N.
        heads, kv_heads, head_dim: Of the attention that `keys` and `query` come from.
        embedding_width: Of `text_embeds` and `image_embeds`.
    """

    batch: int
    grid: tuple[int, int]
    width: int
    keep: int
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 1
    embedding_width: int = 1

    @property
    def tokens(self) -> int:
        """T, visual tokens before the op, CLS not counted."""
        return self.grid[0] * self.grid[1]

    def shape(self, axes: str) -> list[int | str]:
        """Lengths of these axes; one that varies from run to run stays a letter."""
        lengths: dict[str, int] = {
            "1": 1,
            "B": self.batch,
            "T": self.tokens,
            "N": self.keep,
            "D": self.width,
            "H": self.heads,
            "G": self.kv_heads,
            "K": self.head_dim,
            "E": self.embedding_width,
        }
        return [lengths.get(axis, axis) for axis in axes]


@dataclass(frozen=True)
class Selection:
    """Rows that an op kept, as arrays of the same kind (NumPy or PyTorch) and device as its inputs.

    Attributes:
        keep_indices: [B, N] int64, the token that every row stands for, counted among the op's T: behind the vision
            tower the raster index of the patch, -1 for CLS.
        kept_features: [B, N, D], dtype of the input rows; rows that stand for one token are bit-equal to its row.
        details: Intermediate values by name, batched; each op documents its own. Outputs of the op beyond the fields
            here (`Op.reports`, `Op.further_outputs`) are among them.
        merged: [B, N] bool, which rows stand for several tokens; None where the op never merges.
        companions: [B, N, *] by name: rows of tensors that run beside the features, gathered by the same indices.
    """

    keep_indices: Array
    kept_features: Array
    details: dict[str, Array] = field(default_factory=dict)
    merged: Array | None = None
    companions: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """Bound of a reported number; where it does not hold, the runtime shows `warning` after "NAME is VALUE: "."""

    report: str
    warning: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class ModelShape:
    """Facts of a model that a method plans by.

    Attributes:
        grid: Rows and columns of patches of one image.
        layers: Of the language model.
        has_cls: Whether the vision tower has a CLS token.
    """

    grid: tuple[int, int]
    layers: int
    has_cls: bool = True

    @property
    def tokens(self) -> int:
        """Visual tokens without pruning."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Place:
    """A place in a model where an op stands: "tower", on the vision tower's features; "connector", on the rows that the
    connector made of them; "layer", on the input of decoder layer `layer` (0-based), in prefill only.
    """

    kind: str
    layer: int = 0


AFTER_TOWER, AFTER_CONNECTOR = Place("tower"), Place("connector")


def before_layer(layer: int) -> Place:
    """The place before decoder layer `layer`."""
    return Place("layer", layer)


def after_space(space: str) -> Place:
    """The place that an option `space` names: "vision", after the tower, or "projected", after the connector."""
    return {"vision": AFTER_TOWER, "projected": AFTER_CONNECTOR}[space]


def as_grid(name: str, tokens: int, grid: tuple[int, int] | None, *, needs_grid: bool) -> tuple[int, int]:
    """Rows and columns of `tokens` patches: `grid` after a look, else a square, else one row where that is harmless.

    Raises:
        UsageError: The grid has another number of patches, or `name` needs one and none can be told.
    """
    side = math.isqrt(tokens)
    if grid is None:
        if side * side == tokens:
            return side, side
        if needs_grid:
            raise UsageError(f"{name} needs grid=(rows, columns), and {tokens} patches are no square")
        return 1, tokens
    if len(grid) != 2 or grid[0] * grid[1] != tokens or min(grid) < 1:
        raise UsageError(f"grid={tuple(grid)} does not have {tokens} patches; give (rows, columns)")
    return int(grid[0]), int(grid[1])
