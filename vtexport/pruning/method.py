"""Pruning methods: a descriptor, options, and a plan of ops at places in a model."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from vtexport.errors import UsageError
from vtexport.pruning.op import Op
from vtexport.pruning.options import Option, Options
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import ModelShape


class Method(ABC):
    """One published pruning method. Subclasses set the class attributes and are registered with `@register`.

    A method with one op writes `first_op`; one with more, or with remarks about its choice, writes `plan`, too.

    Attributes:
        name: The word after `--method`.
        title, arxiv: The paper; empty where there is none.
        acts: Where in the model it prunes, for people.
        budget: What `keep` counts, for people.
        op: Class of the op before the language model; None where the method has none of its own there.
        options: What a user may set.
        adaptive: Whether it says how an image's budget follows from the redundancy of its features.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    acts: ClassVar[str]
    budget: ClassVar[str]
    op: ClassVar[type[Op] | None] = None
    options: ClassVar[tuple[Option, ...]] = ()
    adaptive: ClassVar[bool] = False

    def takes_cls(self, options: Options, *, has_cls: bool = True) -> bool:
        """True where the first op reads the CLS row, on a vision tower that has one or has none."""
        return False

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        """The op before the language model, for `keep` tokens that enter it; None where no budget was given.

        Raises:
            UsageError: The budget or an option does not fit the model, or the method has no op there.
        """
        raise UsageError(
            f"{self.name} prunes inside the language model and has no op of its own behind the vision tower; "
            "build a bundle with it, or use vtexport.pruning.apply"
        )

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        """All ops with their settings and places for the budget `keep`; None where none was given.

        Raises:
            UsageError: The budget or an option does not fit the model.
        """
        placed = self.first_op(options, model, keep)
        return Schedule(placed.keep, (placed,), options.resolved(**placed.op.settings()), has_cls=model.has_cls)
