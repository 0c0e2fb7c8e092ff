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
    from vtexport.pruning.llm.step import LLMStep

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
        allowed = f"a {'whole ' if kind is int else ''}number from {minimum}"
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
class Limit:
    """What a reported number has to hold; where it does not, the runtime shows `warning` after "NAME is VALUE: "."""

    report: str
    warning: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Selection:
    """What a method kept, as arrays of the same kind (NumPy or PyTorch) and device as its inputs.

    Attributes:
        keep_indices: [B, N] int64, raster index of the patch every row stands for, -1 for CLS.
        kept_features: [B, N, D], dtype of the input features; rows that stand for one patch are bit-equal to its row.
        details: Intermediate values by name, batched; each method documents its own. What the op gives beyond the
            fields here (`Method.further_outputs`) is among them.
        merged: [B, N] bool, which rows stand for several patches; None where the method never merges.
    """

    keep_indices: Array
    kept_features: Array
    details: dict[str, Array]
    merged: Array | None = None


@dataclass(frozen=True)
class Sizes:
    """The fixed sizes one op is built for.

    Attributes:
        batch: Images, B.
        grid: Rows and columns of patches; T is their product.
        width: Feature width D of the space the op acts in.
        keep: The budget N.
        heads, head_width: Of the vision tower, for `keys`.
        embedding_width: Of what comes as `text_embeds` and `image_embeds`.
    """

    batch: int
    grid: tuple[int, int]
    width: int
    keep: int
    heads: int = 1
    head_width: int = 1
    embedding_width: int = 1

    @property
    def tokens(self) -> int:
        """T, patches of one image without CLS."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Schedule:
    """A plan's pruning: one op behind the vision tower, then steps inside the language model.

    Attributes:
        encoder: The method whose op stands behind the vision tower.
        parameters: Its parameters, resolved.
        visual_tokens: What it keeps: the visual tokens that enter the language model.
        keep: The budget asked for: the mean over the decoder's layers where there are steps.
        steps: By rising layer.
        name: Of the method that made the schedule.
        shown: Its parameters, resolved, where they are not those of the encoder's op.
    """

    encoder: Method
    parameters: Any
    visual_tokens: int
    keep: int
    steps: tuple[LLMStep, ...]
    name: str
    shown: Any = None


class Method(ABC):
    """One published pruning method. Subclasses set the class attributes and are registered with `@register`.

    Attributes:
        name: The word after `--method`.
        op_type: Name of the ONNX op and of its function; starts with `Vtx`.
        title, arxiv: The paper; empty where there is none.
        acts: Where in the model the op stands.
        budget: What `keep` counts.
        positions: "contiguous" or "original" position ids for the kept tokens.
        merges: Whether rows may stand for several patches; the op then has the output `merged`.
        needs_grid: Whether the op has to know rows and columns of patches, not just their number.
        has_plugin: Whether native forms of the op are meant to exist; False where the function body is all it takes.
        smallest_keep: Smallest budget the method is defined for.
        parameters: The `Parameters` class with the method's options.
        diagnostics: Intermediate values that the ONNX form can expose: name -> ONNX element type and axes, B images,
            T tokens, N kept, K groups.
    """

    name: ClassVar[str]
    op_type: ClassVar[str]
    title: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    acts: ClassVar[str]
    budget: ClassVar[str]
    positions: ClassVar[str]
    merges: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    has_plugin: ClassVar[bool] = True
    smallest_keep: ClassVar[int] = 1
    parameters: ClassVar[type[Parameters]] = Parameters
    diagnostics: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @abstractmethod
    def signals(self, parameters: Any) -> tuple[str, ...]:
        """Names in `vtexport.pruning.signals.SIGNALS`, in their order there, of what the op reads besides features."""

    @abstractmethod
    def takes_cls(self, parameters: Any) -> bool:
        """Whether `features` has the CLS row in front of the patch rows."""

    def space(self, parameters: Any) -> str:
        """Which features the op takes: "vision", before the projector, or "projected", after it (then without CLS)."""
        return "vision"

    def dynamic(self, parameters: Any) -> bool:
        """Whether the method says how an image's budget follows from rho, its patches' mean cosine, before the op."""
        return False

    def reports(self, parameters: Any) -> Mapping[str, str]:
        """Further outputs of the op, one number an image [B]: name -> ONNX element type.

        A runtime passes them on with the answer. One called `count` says how many rows from the front are to be used;
        the others only fill the budget.
        """
        return {}

    def limits(self, parameters: Any, *, grid: tuple[int, int], keep: int) -> tuple[Limit, ...]:
        """What the reported numbers have to hold for (resolved) `parameters` and a budget, else a runtime warns."""
        return ()

    def further_outputs(self, parameters: Any) -> Mapping[str, tuple[str, str]]:
        """Outputs for the graphs behind the op, after the common ones: name -> ONNX element type and axes, B images,
        N kept tokens."""
        return {}

    @abstractmethod
    def resolve(self, parameters: Any, *, grid: tuple[int, int], keep: int | None) -> tuple[int, Any]:
        """The budget and the parameters with every None filled in, for a grid of patches (rows, columns).

        Raises:
            UsageError: The budget or a parameter does not fit the number of tokens.
        """

    def schedule(self, parameters: Any, *, grid: tuple[int, int], keep: int | None, layers: int) -> Schedule:
        """What runs behind the vision tower and what inside a language model of `layers` layers, for the budget `keep`.

        Raises:
            UsageError: As `resolve`.
        """
        keep, resolved = self.resolve(parameters, grid=grid, keep=keep)
        return Schedule(self, resolved, keep, keep, (), self.name)

    def remarks(self, parameters: Any, *, grid: tuple[int, int], keep: int) -> tuple[str, ...]:
        """Sentences that a build prints about this choice of (resolved) parameters: limits a user should know of."""
        return ()

    @abstractmethod
    def select(self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: Any) -> Selection:
        """The reference. Inputs are checked and `parameters` resolved already; use `vtexport.pruning.select`.

        `signals` are by tensor name (`Signal.input`), as they were given.
        """

    @abstractmethod
    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: Any) -> dict[str, str]:
        """Write the ONNX function body. Its inputs are named "features" and as `Signal.input` says.

        Returns:
            The value names of `kept_features`, `keep_indices`, `merged` where the method merges, of every entry of
            `reports` and `further_outputs`, and of the `diagnostics` that exist with these parameters.
        """

    def check_keep(self, keep: int | None, *, largest: int, unit: str) -> int:
        """`keep` when it is a whole number from `smallest_keep` to `largest`, else `UsageError`."""
        if isinstance(keep, bool) or not isinstance(keep, int) or not self.smallest_keep <= keep <= largest:
            raise UsageError(
                f"keep={keep!r} is not allowed for {self.name} on this image size; "
                f"give a whole number from {self.smallest_keep} to {largest} ({unit})"
            )
        return keep


class LLMMethod(Method):
    """A method that prunes inside the language model only: all patches enter it. Subclasses write `schedule`."""

    op_type = ""
    positions = "contiguous"  # of the tokens that enter; each step says what becomes of them

    def signals(self, parameters: Any) -> tuple[str, ...]:
        return ()

    def takes_cls(self, parameters: Any) -> bool:
        return True

    @abstractmethod
    def schedule(self, parameters: Any, *, grid: tuple[int, int], keep: int | None, layers: int) -> Schedule: ...

    def resolve(self, parameters: Any, *, grid: tuple[int, int], keep: int | None) -> tuple[int, Any]:
        raise self._inside()

    def select(self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: Any) -> Selection:
        raise self._inside()

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: Any) -> dict[str, str]:
        raise self._inside()

    def _inside(self) -> UsageError:
        return UsageError(
            f"{self.name} prunes inside the language model and has no op of its own behind the vision tower; "
            "build a bundle with it, or use vtexport.pruning.apply"
        )


def as_grid(method: Method, tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of `tokens` patches: `grid` after a look, else a square, else one row where that is harmless.

    Raises:
        UsageError: The grid has another number of patches, or the method needs one and none can be told.
    """
    side = math.isqrt(tokens)
    if grid is None:
        if side * side == tokens:
            return side, side
        if method.needs_grid:
            raise UsageError(f"{method.name} needs grid=(rows, columns), and {tokens} patches are no square")
        return 1, tokens
    if len(grid) != 2 or grid[0] * grid[1] != tokens or min(grid) < 1:
        raise UsageError(f"grid={tuple(grid)} does not have {tokens} patches; give (rows, columns)")
    return int(grid[0]), int(grid[1])
