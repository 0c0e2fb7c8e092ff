"""Findings about a bundle on this machine: the graphs that each backend and target would run, and a trial."""

from __future__ import annotations

from collections.abc import Iterator

from vtexport.backends.registry import open_backend, runtimes
from vtexport.backends.targets import list_targets
from vtexport.bundle.abilities import Abilities, ChosenGraphs, choose_graphs
from vtexport.bundle.manifest import Manifest
from vtexport.bundle.reader import Bundle
from vtexport.dtypes import DTYPES
from vtexport.errors import VtexportError
from vtexport.runtime.findings import Finding


def graphs(bundle: Bundle) -> list[Finding]:
    """The variants of graphs that each backend here, and each target elsewhere, would run of the plans."""
    return [_graphs(who, bundle.manifest, abilities) for who, abilities in _runners(bundle.manifest)]


def _runners(manifest: Manifest) -> Iterator[tuple[str, Abilities]]:
    for name, runtime in runtimes().items():
        if runtime.open is not None:
            try:
                backend = open_backend(name)
            except VtexportError:
                continue  # a finding on the backend says why
            yield f"backend {name}", backend.provides.abilities
            backend.close()
    precision = DTYPES[manifest.precision].precision
    for target in list_targets():
        if runtimes()[target.runtime].has_engines and precision in target.precisions:
            yield f"target {target.name}", target.abilities


def _graphs(who: str, manifest: Manifest, abilities: Abilities) -> Finding:
    plans: dict[str, list[str]] = {}
    passed_over: dict[str, str] = {}
    try:
        for plan in manifest.plans:
            chosen = choose_graphs(manifest, plan, abilities)
            plans.setdefault(_variants(manifest, chosen), []).append(plan.name)
            passed_over |= chosen.passed_over
    except VtexportError as error:
        return Finding("information", "missing", f"{who} runs no graphs of every plan", str(error))
    what = "; ".join(f"{text} ({', '.join(names)})" for text, names in plans.items())
    why = [f"{variant} graphs are passed over: {reason}" for variant, reason in passed_over.items()]
    return Finding("information", "ok", f"{who} takes {what}", "; ".join(why) or None)


def _variants(manifest: Manifest, chosen: ChosenGraphs) -> str:
    """Variants by stage, such as "vision modern, prune classic, decoder modern"."""
    stages = {"vision": [chosen.vision], "prune": [chosen.prune], "decoder": chosen.decoder}
    if chosen.prune_llm:
        stages["prune_llm"] = chosen.prune_llm
    said = []
    for stage, names in stages.items():
        variants = dict.fromkeys(manifest.graphs[name].variant or "with function bodies" for name in names)
        said.append(f"{stage} {' and '.join(variants)}")
    return ", ".join(said)


def trial(bundle: Bundle) -> Finding:
    """A short answer about a grey image by every plan of a bundle.

    Raises:
        VtexportError: a plan gives no answer.
    """
    import numpy as np

    from vtexport.runtime.pipeline import Pipeline

    tried = []
    for plan in bundle.manifest.plans:
        image = np.full((336, 336, 3), 128, np.uint8)
        with Pipeline(bundle, plan.name) as pipeline:
            answer = pipeline.generate(image, "What is this?", max_new_tokens=4)
        tried.append(
            f"{plan.name}: {answer.visual_tokens} visual tokens, first token {answer.timings_ms['first_token']:.0f} ms"
        )
    return Finding("information", "ok", f"{bundle.folder} answers ({'; '.join(tried)})")
