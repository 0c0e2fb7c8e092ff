"""What a pruning step inside the language model is: where it acts, what it keeps, by which op.

A step acts on the input of a decoder layer, in prefill only. It sees the whole sequence, S rows of text and visual
tokens, and takes the n visual ones, which stand together from `visual_start` on, to n'. Text is never touched. What an
op reads besides the hidden states comes from the layer before the step or from the layer it stands before, as the step
says; nothing of it is computed in decoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vtexport.errors import InputError
from vtexport.pruning.method import Array

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter

# Tensors beside hidden_states [1, S, W] and visual_start [1] int64, by name, with their axes: S rows, n visual tokens.
SIGNALS = {
    "keys": "[1, S, kv_heads, head_dim], keys of one layer with their rotary positions",
    "query": "[1, heads, head_dim], the query of the last row in the same layer",
    "labels": "[1, n] int64, the cluster of every visual token, -1 for none, given by the op behind the vision tower",
}


@dataclass(frozen=True)
class LLMSizes:
    """The fixed sizes one op is built for: n visual tokens in, n' out, and those of the decoder."""

    tokens: int
    keep: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class LLMSelection:
    """What an op kept: arrays of the same kind as its inputs.

    Attributes:
        kept: [n'] int64, ascending: the visual token, counted among the n, that every row stands for.
        rows: [n', W], dtype of the hidden states; rows that stand for one token are bit-equal to its row.
        details: Intermediate values by name; each op documents its own.
        merged: [n'] bool, which rows stand for several tokens; None where the op never merges.
    """

    kept: Array
    rows: Array
    details: dict[str, Array] = field(default_factory=dict)
    merged: Array | None = None


class LLMOp(ABC):
    """One op. Its ONNX form has the inputs hidden_states [1, S, W], visual_start [1] int64 and its signals; the outputs
    hidden_states_out [1, S - n + n', W] and rows [1, S - n + n'] int64, the input row that every output row stands for.

    Attributes:
        op_type: Name of the ONNX op and of its function; starts with `Vtx`.
        signals: Names in `SIGNALS`, in their order there.
        merges: Whether rows may stand for several tokens.
    """

    op_type: ClassVar[str]
    signals: ClassVar[tuple[str, ...]]
    merges: ClassVar[bool] = False

    @abstractmethod
    def select(
        self, hidden: Array, visual_start: int, signals: Mapping[str, Array], *, sizes: LLMSizes, parameters: Any
    ) -> LLMSelection:
        """The reference, in float64: `hidden` [S, W]; signals without their first axis of 1."""

    @abstractmethod
    def emit(self, e: Emitter, *, sizes: LLMSizes, parameters: Any) -> dict[str, str]:
        """Write the ONNX function body; the value names of hidden_states_out and rows."""


@dataclass(frozen=True)
class LLMStep:
    """One step of a plan.

    Attributes:
        layer: The decoder layer (0-based) on whose input the step acts; at least 1.
        tokens, keep: Visual tokens before and after.
        op: What chooses.
        source: Where keys and query come from: "before", the layer in front of the step, which has just run, or
            "behind", projected anew from the step's input by the layer that it stands before.
        positions: Position ids of the layers from here on. "original": every row keeps its own. "compacted": rows are
            numbered through, and decoding goes on from there. "official": in prefill each row's place in the sequence
            before the step, while decoding goes on from the unpruned count, as ViTCoP's released code has it.
        parameters: The op's own.
    """

    layer: int
    tokens: int
    keep: int
    op: LLMOp
    source: str = "before"
    positions: str = "original"
    parameters: Any = None


def checked_step(hidden: Array, signals: Mapping[str, Array]) -> Any:
    """The array namespace of a reference's inputs.

    Raises:
        InputError: One holds NaN or infinite values.
    """
    from array_api_compat import array_namespace

    xp = array_namespace(hidden)
    for name, value in {"hidden_states": hidden, **signals}.items():
        if name != "labels" and not bool(xp.all(xp.isfinite(value))):
            raise InputError(f"{name} holds NaN or infinite values; check the decoder layer that they come from")
    return xp
