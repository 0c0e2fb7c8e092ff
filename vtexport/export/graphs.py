"""The graph files of a bundle: each written once, however many plans use it, and described for the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vtexport.bundle import manifest as schema
from vtexport.export.check import check_graphs
from vtexport.export.decoder import decoder_segment
from vtexport.export.graph import WEIGHTS_FOLDER, interface
from vtexport.export.plan import Plan
from vtexport.export.prune import prune_graph
from vtexport.export.vision import vision_graph
from vtexport.export.weights import Weight
from vtexport.models.spec import ModelSpec

__all__ = ["WEIGHTS_FOLDER", "GraphExporter"]


class GraphExporter:
    """Writes graphs of one model into `folder`, in the modern dialect. `graphs` grows as they are asked for."""

    def __init__(self, config: Any, spec: ModelSpec, weights: Mapping[str, Weight], folder: Path, dtype: str):
        self._config, self._spec, self._weights, self._folder, self._dtype = config, spec, weights, folder, dtype
        self.graphs: dict[str, schema.Graph] = {}

    def vision(self, signals: tuple[str, ...]) -> str:
        """The vision tower with these signals; depends on nothing else, so plans share it."""
        return self._once(
            ".".join(("vision", *signals, "modern")),
            lambda: vision_graph(
                self._config.vision_config, self._spec.vision, signals, self._weights, self._folder, self._dtype
            ),
        )

    def prune(self, plan: Plan) -> str:
        """The plan's pruning op and the projector."""
        return self._once(
            f"{plan.name}.prune",
            lambda: prune_graph(
                plan.method, plan.options, plan.keep, self._spec, self._weights, self._folder, self._dtype
            ),
        )

    def decoder(self) -> str:
        """The whole decoder as one segment; the same for every plan that does not prune inside it."""
        decoder = self._spec.decoder
        return self._once(
            "decoder_0.modern",
            lambda: decoder_segment(decoder, self._weights, self._folder, self._dtype, 0, decoder.layers),
        )

    def check(self, notify: Callable[[str], None]) -> None:
        """Checks every graph written (see `check_graphs`)."""
        check_graphs([self._path(name) for name in self.graphs], notify)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.onnx"

    def _once(self, name: str, export: Callable[[], ir.Model]) -> str:
        if name not in self.graphs:
            model = export()
            ir.save(model, self._path(name))
            self.graphs[name] = schema.Graph(
                file=f"{self._folder.name}/{name}.onnx",
                dialect="modern",
                inputs=_tensors(model.graph.inputs),
                outputs=_tensors(model.graph.outputs),
            )
        return name


def _tensors(values: Any) -> list[schema.Tensor]:
    return [
        schema.Tensor(name=name, shape=shape, dtype=dtype)  # type: ignore[arg-type]
        for name, shape, dtype in interface(values)
    ]
