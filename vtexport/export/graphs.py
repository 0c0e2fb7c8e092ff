"""The graph files of a bundle: each written once, however many plans use it, and described for the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vtexport.bundle import manifest as schema
from vtexport.export.check import check_graphs
from vtexport.export.needs import needs_of
from vtexport.export.plan import PlanSpec
from vtexport.export.prune import prune_graph
from vtexport.export.prune_llm import prune_llm_graph
from vtexport.graphs.builder import WEIGHTS_FOLDER
from vtexport.graphs.dialects import DIALECTS, Dialect
from vtexport.graphs.files import interface, save
from vtexport.graphs.weight import Weight
from vtexport.models.parts import ModelSpec

__all__ = ["WEIGHTS_FOLDER", "GraphExporter"]


class GraphExporter:
    """Writes graphs of one model into `folder`. `graphs` grows as they are asked for, each once.

    `weights_base` is where the folder of the weights can be read meanwhile: `folder`, or that of an earlier bundle.
    `prefix` begins the names of the files.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Weight],
        folder: Path,
        dtype: str,
        weights_base: Path,
        prefix: str = "",
    ):
        self._spec, self._weights, self._folder, self._dtype = spec, weights, folder, dtype
        self._weights_base, self._prefix = weights_base, prefix
        self.graphs: dict[str, schema.Graph] = {}

    def plan(self, plan: PlanSpec) -> schema.PlanGraphs:
        """All graphs of one plan, those of one stage in the order in which runtimes should take them."""
        return schema.PlanGraphs(
            vision=[self._vision(plan.vision_signals, dialect) for dialect in DIALECTS.values()],
            prune=self._prune(plan),
            decoder=[
                [self._decoder(each.first_layer, each.layers, dialect) for dialect in DIALECTS.values()]
                for each in plan.segments
            ],
            prune_llm=[self._prune_llm(plan, number) for number in range(len(plan.steps))],
        )

    def check(self, notify: Callable[[str], None]) -> None:
        """Checks every graph written (see `check_graphs`)."""
        check_graphs([self.path(name) for name in self.graphs], notify)

    def _vision(self, signals: tuple[str, ...], dialect: Dialect) -> str:
        """The vision tower with these signals; depends on nothing else, so plans share it."""
        name = ".".join(("vision", *signals, dialect.name))
        return self._once(
            name,
            dialect.name,
            lambda: self._spec.vision.graph(signals, self._weights, self._weights_base, self._dtype, dialect),
        )

    def _prune(self, plan: PlanSpec) -> list[str]:
        """The plan's pruning op and the projector; one for every dialect."""

        def export() -> ir.Model:
            return prune_graph(plan.first, self._spec, self._weights, self._weights_base, self._dtype)

        name = f"{plan.name}.prune"
        return self._with_native(name, export) if plan.first.op.has_native else [self._once(name, "", export)]

    def _prune_llm(self, plan: PlanSpec, number: int) -> list[str]:
        """The op between two segments; one for every dialect."""

        def export() -> ir.Model:
            return prune_llm_graph(
                plan.steps[number], self._spec.decoder, self._weights, self._weights_base, self._dtype
            )

        return self._with_native(f"{plan.name}.prune_llm_{number}", export)

    def _decoder(self, first: int, layers: int, dialect: Dialect) -> str:
        """A run of decoder layers, shared by every plan that is cut there; the whole decoder is `decoder_0`."""
        decoder = self._spec.decoder
        name = "decoder_0" if layers == decoder.num_hidden_layers else f"decoder_{first}-{first + layers - 1}"
        return self._once(
            f"{name}.{dialect.name}",
            dialect.name,
            lambda: decoder.segment(self._weights, self._weights_base, self._dtype, first, layers, dialect),
        )

    def path(self, name: str) -> Path:
        """The file of a graph."""
        return self._folder / f"{self._prefix}{name}.onnx"

    def _once(self, name: str, variant: str, export: Callable[[], ir.Model]) -> str:
        if name not in self.graphs:
            self._write(name, variant, export())
        return name

    def _with_native(self, name: str, export: Callable[[], ir.Model]) -> list[str]:
        """Two graphs of one model: for runtimes with our native ops, and with the functions of these ops.

        TensorRT 9.0 to 10.6 takes a function before it looks for a plugin, so a graph for plugins has none.
        """
        native = f"{name}.native"
        if name not in self.graphs:
            model = export()
            self._write(name, "", model)
            model.functions.clear()
            self._write(native, "native", model)
        return [native, name]

    def _write(self, name: str, variant: str, model: ir.Model) -> None:
        save(model, self.path(name))
        self.graphs[name] = schema.Graph(
            file=f"{self._folder.name}/{self.path(name).name}",
            variant=variant,
            needs=needs_of(model),
            inputs=_tensors(model.graph.inputs),
            outputs=_tensors(model.graph.outputs),
        )


def _tensors(values: Any) -> list[schema.Tensor]:
    return [
        schema.Tensor(name=name, shape=shape, dtype=dtype)  # type: ignore[arg-type]
        for name, shape, dtype in interface(values)
    ]
