"""Types of the generated table of the native ops (`op_structures.OPS`)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node.

    Attributes:
        kind: "integer", "number", "flag" or "word".
        member: The field of the op's C structure, None for the counts, which are among the sizes, and for what native
            forms do not read.
        is_read: Whether native forms read it.
        words: The number in C of every word; None where native forms do not read it.
    """

    name: str
    kind: str
    member: str | None = None
    is_read: bool = True
    words: Mapping[str, int | None] = field(default_factory=dict)

    def number_of(self, value: Any) -> int | float:
        """The number in the C structure for a value that a person gives.

        Raises:
            KeyError: It is none of the words.
        """
        if self.kind == "word":
            number = self.words[value]
            assert number is not None, f"{self.name} is not read"
            return number
        return float(value) if self.kind == "number" else int(value)

    def value_of(self, number: int | float) -> Any:
        """The value on a node for a number of the C structure."""
        return next(word for word, each in self.words.items() if each == number) if self.kind == "word" else number


@dataclass(frozen=True)
class Axis:
    """The place of an axis' length: a field of the sizes, or a field of the parameters, `plus` so many."""

    size: str | None = None
    parameter: str | None = None
    plus: int = 0


@dataclass(frozen=True)
class NativeTensor:
    """An input, an output or an intermediate value.

    Attributes:
        name: On a node.
        element: "features" (the type that the call's dtype says), "float32", "int64" or "bool".
        axes: A letter an axis.
        member: Its name in `vtx_tensors` or `vtx_step_tensors`.
        when: The attribute with the values with which it is there; empty where it always is.
    """

    name: str
    element: str
    axes: str
    member: str
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class NativeOp:
    """One op of the C API.

    Attributes:
        function: Its name without the library's prefix.
        op_type: Its ONNX name.
        parameters: The structure of its parameters, None where it has none.
        is_step: Whether it acts inside the language model and takes the structures for that.
        needs_grid: Whether its node has grid_rows and grid_columns.
        attributes: Of its node, in their order.
        inputs, outputs: Of its node, in their order, with those that are there for some attributes only.
        diagnostics: Intermediate values that the C API writes.
    """

    function: str
    op_type: str
    parameters: type[ctypes.Structure] | None
    is_step: bool
    needs_grid: bool
    axes: Mapping[str, Axis]
    attributes: tuple[Attribute, ...]
    inputs: tuple[NativeTensor, ...]
    outputs: tuple[NativeTensor, ...]
    diagnostics: tuple[NativeTensor, ...]

    def attribute(self, name: str) -> Attribute:
        return next(each for each in self.attributes if each.name == name)

    def is_there(self, tensor: NativeTensor, parameters: ctypes.Structure | None) -> bool:
        """True where a call with these parameters has the tensor."""
        for name, values in tensor.when.items():
            attribute = self.attribute(name)
            assert attribute.member is not None
            if getattr(parameters, attribute.member) not in [attribute.number_of(value) for value in values]:
                return False
        return True
