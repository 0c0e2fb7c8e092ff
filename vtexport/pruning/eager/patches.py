"""Attributes laid over those of a live object, and taken off again without harm to what others laid there."""

from __future__ import annotations

from typing import Any

_NOTHING = object()


class Patches:
    """Instance attributes of live objects, put and taken off in one place.

    accelerate's hooks, `model.compile()` and callers' own wrappers lay attributes over the same modules, before or
    after us. What was there before comes back; what was laid over ours stays, so ours has to pass everything through
    once `removed` is true.

    Attributes:
        removed: Whether `remove` was called.
    """

    def __init__(self) -> None:
        self.removed = False
        self._put: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Lays `value` over the attribute `name` of `owner`."""
        before = vars(owner).get(name, _NOTHING)
        setattr(owner, name, value)
        self._put.append((owner, name, vars(owner)[name], before))

    def remove(self) -> None:
        """Takes everything off, last first. Does nothing the second time."""
        self.removed = True
        while self._put:
            owner, name, value, before = self._put.pop()
            if vars(owner).get(name, _NOTHING) is not value:
                continue
            if before is _NOTHING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
