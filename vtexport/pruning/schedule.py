"""Schedules: which ops a method places where in a model for one budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtexport.pruning.op import Op
from vtexport.pruning.signals import SIGNALS, given_by
from vtexport.pruning.types import Limit, Place


@dataclass(frozen=True)
class PlacedOp:
    """One op of a schedule.

    Attributes:
        place: Where it stands.
        op: The op with its settings.
        tokens: Visual tokens before it, CLS not counted.
        keep: Visual tokens it leaves.
        positions: Position ids from here on. Of the op before the language model: "contiguous", numbered through, or
            "original", the patch's raster index. Of ops inside it: "original", every row keeps its own; "compacted",
            numbered through, and decoding goes on from there; "official", in prefill each row's place in the sequence
            before the step, while decoding goes on from the unpruned count, as ViTCoP's released code has it.
        source: Where keys and query of an op inside the language model come from: "before", the layer in front of it,
            which has just run, or "behind", projected anew from the op's input by the layer that it stands before.
    """

    place: Place
    op: Op
    tokens: int
    keep: int
    positions: str = "contiguous"
    source: str = "before"

    @property
    def layer(self) -> int:
        """The decoder layer that it stands before."""
        return self.place.layer


@dataclass(frozen=True)
class Schedule:
    """The ops of one budget, each at its place.

    Attributes:
        keep: The budget asked for: visual tokens that enter the language model, or their mean over its layers where
            ops stand inside it.
        ops: In the order they run: one before the language model, then those inside it by rising layer.
        settings: Every option of the method, resolved.
        limits: Bounds of the numbers that the first op reports.
        remarks: Sentences that a build prints: limits of this choice that a user should know of.
        adaptive: Whether the method says how an image's budget follows from rho, its patches' mean cosine.
        has_cls: Whether the vision tower has a CLS token.
    """

    keep: int
    ops: tuple[PlacedOp, ...]
    settings: Mapping[str, Any]
    limits: tuple[Limit, ...] = ()
    remarks: tuple[str, ...] = ()
    adaptive: bool = False
    has_cls: bool = True

    @property
    def first(self) -> PlacedOp:
        """The op before the language model."""
        return self.ops[0]

    @property
    def steps(self) -> tuple[PlacedOp, ...]:
        """The ops inside the language model."""
        return self.ops[1:]

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that enter the language model."""
        return self.first.keep

    @property
    def signals(self) -> tuple[str, ...]:
        """Signals that the first op reads on this vision tower, by name."""
        return tuple(given_by(name, has_cls=self.has_cls) for name in self.first.op.signals())

    @property
    def substitutions(self) -> tuple[str, ...]:
        """Sentences about signals that others stand in for."""
        return tuple(
            f"the vision tower has no CLS token, so {SIGNALS[name].input} is the "
            f"{SIGNALS[given_by(name, has_cls=self.has_cls)].about}"
            for name in self.first.op.signals()
            if given_by(name, has_cls=self.has_cls) != name
        )
