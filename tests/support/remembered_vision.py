"""Builds that make the vision graph of a checkpoint once, for tests of what comes after a build.

PyTorch's exporter takes most of a small build's time, and gives the same graph for every plan with the same signals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def remembered_vision() -> Iterator[None]:
    """Builds within the block take graphs that an earlier one in this process has made of the same weights."""
    from vtexport.export import graphs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "VisionTower", _RememberedTower)
        yield


class _RememberedTower:
    """`VisionTower`, exporting what is not remembered yet."""

    _made: dict[tuple[Any, ...], Any] = {}  # noqa: RUF012 (it is shared)

    def __init__(self, config: Any, spec: Any, signals: tuple[str, ...], weights: Any, folder: Any, dtype: str):
        self._arguments = config, spec, signals, weights, folder, dtype
        stored = tuple((name, weight.file, weight.beside, weight.offset) for name, weight in sorted(weights.items()))
        self._key = repr(spec), signals, dtype, stored
        self._tower: Any = None

    def graph(self, opset: int) -> Any:
        import onnx_ir as ir

        from vtexport.export.vision import VisionTower

        key = (*self._key, opset)
        if key not in self._made:
            self._tower = self._tower or VisionTower(*self._arguments)
            self._made[key] = ir.serde.serialize_model(self._tower.graph(opset))
        return ir.serde.deserialize_model(self._made[key])
