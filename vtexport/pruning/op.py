"""Pruning ops: rows of a tensor in, fewer rows out, in an array reference and as an ONNX function body.

An op's class is a frozen dataclass whose fields are its settings, all of them set; they are the node's attributes, in
their order. Where in a model an op stands is not its own business but a method's (`vtexport.pruning.schedule`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vtexport.errors import InputError
from vtexport.pruning.options import Options, settings_of
from vtexport.pruning.signals import SIGNALS
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir
    from typing_extensions import Self

    from vtexport.graphs.builder import Builder

_OP_TYPES: dict[str, type[Op]] = {}


class Op(ABC):
    """One pruning op. Subclasses are frozen dataclasses whose fields are made by `setting`.

    As it stands here it acts on one image's rows behind the vision tower or the connector, batched: inputs `features`
    [B, c + T, D] (c = 1 with the CLS row in front) and the signals; outputs `kept_features` [B, N, D], `keep_indices`
    [B, N] int64 (raster index of the patch, -1 for CLS), where it merges `merged` [B, N] bool, then `reports` and
    `further_outputs`.

    Attributes:
        op_type: Name of the ONNX op and of its function; starts with `Vtx`.
        merges: Whether rows may stand for several tokens.
        needs_grid: Whether the op has to know rows and columns of patches, not just their number.
        has_native: Whether native forms of it exist (`plugins/schema/ops.toml`); False where the function body is all.
        rows: Name of the tensor that it prunes.

    Raises:
        ValueError: On subclassing, where the op type is taken or lacks the prefix `Vtx`. TensorRT's parser looks
            functions up by name alone, so an op type must be unlike every other op in any domain.
    """

    op_type: ClassVar[str]
    merges: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    has_native: ClassVar[bool] = True
    rows: ClassVar[str] = "features"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "op_type" not in cls.__dict__:  # another base class
            return
        if not cls.op_type.startswith("Vtx"):
            raise ValueError(f"op type {cls.op_type} of {cls.__qualname__} must start with Vtx")
        other = _OP_TYPES.setdefault(cls.op_type, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{cls.__qualname__} takes the op type of {other.__qualname__}")

    def __post_init__(self) -> None:
        for option in settings_of(type(self)):
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))

    @classmethod
    def of(cls, options: Options, **derived: Any) -> Self:
        """The op with its settings as a user set them; those that follow from something else are `derived`."""
        names = [option.name for option in settings_of(cls)]
        return cls(**{name: derived[name] if name in derived else options[name] for name in names})

    @property
    def takes_cls(self) -> bool:
        """True where `features` has the CLS row in front of the patch rows."""
        return False

    def signals(self) -> tuple[str, ...]:
        """Names in `vtexport.pruning.signals.SIGNALS`, in their order there, of what the op reads besides the rows."""
        return ()

    def reports(self) -> tuple[Tensor, ...]:
        """Outputs of one number an image, axes "B", which a runtime passes on with the answer.

        One called `count` says how many rows from the front are to be used; the others only fill the budget.
        """
        return ()

    def further_outputs(self) -> tuple[Tensor, ...]:
        """Outputs for the ops inside the language model."""
        return ()

    def diagnostics(self) -> tuple[Tensor, ...]:
        """Intermediate values that the ONNX form can expose, for tests."""
        return ()

    def inputs(self) -> tuple[Tensor, ...]:
        """The node's inputs; the CLS row is counted in the first one's axis T."""
        return (Tensor("features", "BTD", "features"), *self._signal_inputs())

    def outputs(self) -> tuple[Tensor, ...]:
        """The node's outputs."""
        merged = (Tensor("merged", "BN", "bool"),) if self.merges else ()
        kept = Tensor("kept_features", "BND", "features"), Tensor("keep_indices", "BN", "int64")
        return (*kept, *merged, *self.reports(), *self.further_outputs())

    def attributes(self, sizes: Sizes) -> dict[str, Any]:
        """The node's attributes: how TensorRT finds the plugin, the budget, the grid where the op has to know it, and
        every setting."""
        grid = {}
        if self.needs_grid and self.has_native:
            grid = {"grid_rows": sizes.grid[0], "grid_columns": sizes.grid[1]}
        return {**PLUGIN, "keep": sizes.keep, **grid, **self._own_attributes()}

    def settings(self) -> dict[str, Any]:
        """Settings by name."""
        return {option.name: getattr(self, option.name) for option in settings_of(type(self))}

    @abstractmethod
    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        """The reference, in float64, from inputs by tensor name, which are checked already."""

    @abstractmethod
    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        """Write the ONNX function body.

        Args:
            g: What it is written with; `g.MatMul(a, b)` adds a MatMul node.
            inputs: Values by the names of `inputs()`.
            sizes: What the body is built for.

        Returns:
            The values of every output, and of the `diagnostics` that exist with these settings.
        """

    def _own_attributes(self) -> dict[str, Any]:
        """Settings as ONNX has them: flags are 0 or 1."""
        return {name: int(value) if isinstance(value, bool) else value for name, value in self.settings().items()}

    def _signal_inputs(self) -> tuple[Tensor, ...]:
        return tuple(Tensor(each.input, each.axes, each.dtype) for each in map(SIGNALS.__getitem__, self.signals()))


PLUGIN = {"plugin_namespace": "vtexport", "plugin_version": "1"}


class DecoderOp(Op):
    """An op inside the language model, on the input of a decoder layer, in prefill only.

    It sees the whole sequence, S rows of text and visual tokens, and takes the T visual ones, which stand together from
    `visual_start` on, to N; text is never touched. Inputs `hidden_states` [1, S, D], `visual_start` [1] int64 and the
    signals; outputs `hidden_states_out` [1, R, D] with R = S - T + N, and `rows` [1, R] int64, the input row that every
    output row stands for. The reference gives the visual rows alone, as any op does.
    """

    rows = "hidden_states"

    def inputs(self) -> tuple[Tensor, ...]:
        fixed = Tensor("hidden_states", "1SD", "features"), Tensor("visual_start", "1", "int64")
        return (*fixed, *self._signal_inputs())

    def outputs(self) -> tuple[Tensor, ...]:
        return Tensor("hidden_states_out", "1RD", "features"), Tensor("rows", "1R", "int64")

    def attributes(self, sizes: Sizes) -> dict[str, Any]:
        return {**PLUGIN, "visual_count": sizes.tokens, "keep": sizes.keep, **self._own_attributes()}


def op_types() -> dict[str, type[Op]]:
    """Classes of all ops that were imported, by op type; `vtexport.pruning.registry` imports every one."""
    return dict(_OP_TYPES)


def check_decoder_inputs(inputs: Mapping[str, Array]) -> Any:
    """The array namespace of a decoder op's inputs.

    Raises:
        InputError: One holds NaN or infinite values.
    """
    from array_api_compat import array_namespace

    xp = array_namespace(inputs["hidden_states"])
    for name, value in inputs.items():
        if xp.isdtype(value.dtype, "real floating") and not bool(xp.all(xp.isfinite(value))):
            raise InputError(f"{name} holds NaN or infinite values; check the decoder layer that they come from")
    return xp


def visual_rows(inputs: Mapping[str, Array], name: str, sizes: Sizes) -> Array:
    """[T, ...]: the rows of the visual tokens of the input `name` [1, S, ...]."""
    start = int(inputs["visual_start"][0])
    return inputs[name][0, start : start + sizes.tokens, ...]
