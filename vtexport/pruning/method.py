"""What a pruning method is to the rest of vtexport: a descriptor, a set of options and the selection it returns."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter

Array = Any  # a NumPy array or a PyTorch tensor; the array API has no common base class

# Sizes are held in float32 inside the ONNX functions, products of two sizes included, and TensorRT's TopK stops here.
MOST_TOKENS = 3840


def option(
    default: Any,
    *,
    kind: type,
    about: str,
    choices: tuple[str, ...] = (),
    minimum: int | None = None,
    above: float | None = None,
) -> Any:
    """A documented field of a `Parameters` class.

    Args:
        default: Value when the user gives none. `None` means "derived from the budget", as `about` says.
        kind: int, float, bool or str. A float option also takes an int.
        about: One line for `vtexport list methods`.
        choices: The allowed words of a str option.
        minimum: Smallest allowed number.
        above: The number has to be larger than this one.
    """
    allowed = "true or false" if kind is bool else ", ".join(choices)
    if minimum is not None:
        allowed = f"a whole number from {minimum}"
    if above is not None:
        allowed = f"a number above {above:g}"
    metadata = {
        "kind": kind,
        "about": about,
        "choices": choices,
        "minimum": minimum,
        "above": above,
        "allowed": allowed,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parameters:
    """Base of a method's options. Every field is made by `option()`; a wrong value raises `UsageError`."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if value is None and spec.default is None:
                continue
            if not _allowed(value, spec.metadata):
                raise UsageError(f"{spec.name}={value!r} is not allowed; give {spec.metadata['allowed']}")
            if spec.metadata["kind"] is float:
                object.__setattr__(self, spec.name, float(value))


def _allowed(value: Any, metadata: Mapping[str, Any]) -> bool:
    kind = metadata["kind"]
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and value in metadata["choices"]
    if not isinstance(value, (int, float) if kind is float else int) or not math.isfinite(value):
        return False
    if metadata["above"] is not None and not value > metadata["above"]:
        return False
    return metadata["minimum"] is None or value >= metadata["minimum"]


@dataclass(frozen=True)
class Selection:
    """What a method kept, as arrays of the same kind (NumPy or PyTorch) and device as its inputs.

    Attributes:
        keep_indices: [B, N] int64, raster index of the patch every row stands for, -1 for CLS.
        kept_features: [B, N, D], dtype of the input features, rows bit-equal to input rows.
        details: Intermediate values by name, batched; each method documents its own.
    """

    keep_indices: Array
    kept_features: Array
    details: dict[str, Array]


@dataclass(frozen=True)
class Sizes:
    """The fixed sizes one op is built for: batch, patch tokens without CLS, feature width and the budget."""

    batch: int
    tokens: int
    width: int
    keep: int


class Method(ABC):
    """One published pruning method. Subclasses set the class attributes and are registered with `@register`.

    Attributes:
        name: The word after `--method`.
        op_type: Name of the ONNX op and of its function; starts with `Vtx`.
        title, arxiv: The paper; empty where there is none.
        acts: Where in the model the op stands.
        budget: What `keep` counts.
        positions: "contiguous" or "original" position ids for the kept tokens.
        has_plugin: Whether native forms of the op are meant to exist; False where the function body is all it takes.
        smallest_keep: Smallest budget the method is defined for.
        parameters: The `Parameters` class with the method's options.
        diagnostics: Intermediate values that the ONNX form can expose: name -> ONNX element type and axes, B images,
            T tokens, K groups.
    """

    name: ClassVar[str]
    op_type: ClassVar[str]
    title: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    acts: ClassVar[str]
    budget: ClassVar[str]
    positions: ClassVar[str]
    has_plugin: ClassVar[bool] = True
    smallest_keep: ClassVar[int] = 1
    parameters: ClassVar[type[Parameters]] = Parameters
    diagnostics: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @abstractmethod
    def signals(self, parameters: Any) -> tuple[str, ...]:
        """Inputs the op takes besides the features: () or ("cls_attention",), the CLS row summed over heads."""

    @abstractmethod
    def takes_cls(self, parameters: Any) -> bool:
        """Whether `features` has the CLS row in front of the patch rows."""

    @abstractmethod
    def resolve(self, parameters: Any, *, tokens: int, keep: int | None) -> tuple[int, Any]:
        """The budget and the parameters with every None filled in, for `tokens` patches.

        Raises:
            UsageError: The budget or a parameter does not fit the number of tokens.
        """

    @abstractmethod
    def select(self, features: Array, scores: Array | None, *, keep: int, parameters: Any) -> Selection:
        """The reference. Inputs are checked and `parameters` resolved already; use `vtexport.pruning.select`."""

    @abstractmethod
    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: Any) -> dict[str, str]:
        """Write the ONNX function body. Its inputs are named "features" and "scores".

        Returns:
            The value names of `kept_features`, `keep_indices` and of every entry of `diagnostics`.
        """

    def check_keep(self, keep: int | None, *, largest: int, unit: str) -> int:
        """`keep` when it is a whole number from `smallest_keep` to `largest`, else `UsageError`."""
        if isinstance(keep, bool) or not isinstance(keep, int) or not self.smallest_keep <= keep <= largest:
            raise UsageError(
                f"keep={keep!r} is not allowed for {self.name} on this image size; "
                f"give a whole number from {self.smallest_keep} to {largest} ({unit})"
            )
        return keep
