"""References between a manifest's parts: files that are listed, graphs and plans that exist, sizes that fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from vtexport.bundle.views import FixedSize
from vtexport.errors import BundleError, quoted

if TYPE_CHECKING:
    from vtexport.bundle.manifest import AdaptivePlan, Manifest, Plan

_AXES = {"sequential": 1, "mrope": 3}


def is_inside(path: str) -> bool:
    """True where a stored path is a plain relative path that cannot leave the bundle's folder."""
    parts = path.split("/")
    plain = path.isprintable() and "\\" not in path  # a NUL is not printable
    return bool(path) and plain and not any(part in {"", ".", ".."} for part in parts)


def _check_adaptive(manifest: Manifest, adaptive: AdaptivePlan, refuse: Callable[[str], None]) -> None:
    plans = {plan.name: plan for plan in manifest.plans}
    for name in adaptive.plans:
        if name not in plans:
            refuse(f"has the adaptive plan {adaptive.name!r} use the plan {name!r}, which it does not have")
    budgets = [plans[name].keep for name in adaptive.plans]
    if budgets != sorted(set(budgets)) or not budgets[0] <= adaptive.mean <= budgets[-1]:
        refuse(f"has the adaptive plan {adaptive.name!r} with budgets {budgets} and a mean of {adaptive.mean}")
    shared = [(graphs.vision, graphs.decoder) for graphs in (plans[name].graphs for name in adaptive.plans)]
    if any(each != shared[0] for each in shared):
        refuse(f"has the adaptive plan {adaptive.name!r} over plans with other graphs than the prune graph apart")


def _check_steps(manifest: Manifest, plan: Plan, refuse: Callable[[str], None]) -> None:
    """Segments follow each other through the whole decoder, with a step between two of them."""
    edges = [0, *(step.layer for step in plan.steps), manifest.decoder.num_hidden_layers]
    wanted = [(start, end - start) for start, end in itertools.pairwise(edges)]
    if [(segment.first_layer, segment.layers) for segment in plan.segments] != wanted:
        refuse(f"has plan {plan.name!r} with decoder segments that do not fit its steps and layers")
    tokens = [plan.visual_tokens, *(step.keep for step in plan.steps)]
    if any(step.tokens != before or step.keep > before for step, before in zip(plan.steps, tokens, strict=False)):
        refuse(f"has plan {plan.name!r} with steps whose numbers of visual tokens do not follow each other")
    graphs = plan.graphs
    if len(graphs.decoder) != len(plan.segments) or len(graphs.prune_llm) != len(plan.steps):
        refuse(
            f"has plan {plan.name!r} with {len(graphs.decoder)} decoder graphs and {len(graphs.prune_llm)} between "
            f"them for {len(plan.segments)} segments"
        )


def _check_layout(manifest: Manifest, refuse: Callable[[str], None]) -> None:
    """Arrangements of views have names of their own, and the graphs know them; the position ids have their axes."""
    names = [each.name for each in manifest.vision.arrangements]
    if len(set(names)) != len(names):
        refuse("has two arrangements of views of one name")
    if manifest.vision.resize == FixedSize() and len(names) > 1:
        refuse(f"has {len(names)} arrangements of views and the rule 'fixed', which knows one")
    for name, graph in manifest.graphs.items():
        if graph.arrangement is not None and graph.arrangement not in names:
            refuse(f"has the graph {name!r} for the arrangement {graph.arrangement!r}, which it does not describe")
    ids = manifest.position_ids
    if ids.axes != _AXES[ids.kind]:
        refuse(f"has position ids of kind {ids.kind!r} with {ids.axes} axes, not {_AXES[ids.kind]}")


def check_references(manifest: Manifest, where: str) -> None:
    """Refuses a manifest whose parts do not fit each other; `where` names it in errors.

    Raises:
        BundleError: a reference leads nowhere or out of the bundle, or sizes contradict each other.
    """

    def refuse(what: str) -> None:
        raise BundleError(f"{where} {quoted(what, where)}; build or copy the bundle again")

    for path in manifest.files:
        if not is_inside(path):
            refuse(f"names the file {path!r}, which is not a plain path inside the bundle")
    stored = [graph.file for graph in manifest.graphs.values()]
    stored += [manifest.text.embedding.file, manifest.text.tokenizer, manifest.text.chat_template]
    for path in stored:
        if path not in manifest.files:
            refuse(f"uses the file {path!r} but does not list it")
    names = [plan.name for plan in manifest.plans]
    if len(set(names)) != len(names):
        refuse("has two plans of one name")
    for adaptive in manifest.adaptive_plans:
        _check_adaptive(manifest, adaptive, refuse)
        names.append(adaptive.name)
    if len(set(names)) != len(names):
        refuse("has two adaptive plans, or a plan and an adaptive plan, of one name")
    for plan in manifest.plans:
        for name in plan.graph_names():
            if name not in manifest.graphs:
                refuse(f"has plan {plan.name!r} use the graph {name!r}, which it does not describe")
        _check_steps(manifest, plan, refuse)
    _check_layout(manifest, refuse)
    table = manifest.text.embedding
    if len(table.shape) != 2:
        refuse(f"has an embedding of shape {table.shape}")
    itemsize = 4 if table.dtype == "float32" else 2
    if table.offset + table.shape[0] * table.shape[1] * itemsize > manifest.files[table.file].bytes:
        refuse(f"has an embedding that ends behind {table.file!r}")
    if table.shape != [manifest.decoder.vocab_size, manifest.decoder.hidden_size]:
        refuse(f"has an embedding of shape {table.shape} that its decoder's vocabulary and width do not have")
