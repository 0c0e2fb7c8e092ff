"""Abilities of a runtime, against which a bundle's graphs declare their needs; the choice of one graph a stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vtexport.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from vtexport.bundle.manifest import Manifest, Needs, Plan


@dataclass(frozen=True)
class Fault:
    """An operator that a runtime has and answers wrongly with.

    Attributes:
        operator: Of the standard domain.
        type: Element type of the graphs in which it was seen.
        because: The fault, as half a sentence.
    """

    operator: str
    type: str
    because: str


@dataclass(frozen=True)
class Abilities:
    """Everything that one runtime can run.

    Attributes:
        title: Name and version, such as "ONNX Runtime 1.27.0".
        ir_version: The newest that it reads.
        opset: The newest of the standard domain.
        types: Element types that it computes in, as a manifest spells them.
        native_ops: Pruning ops that it has without a function body.
        faults: Operators that it must not run.
    """

    title: str
    ir_version: int
    opset: int
    types: frozenset[str]
    native_ops: frozenset[str] = frozenset()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class ChosenGraphs:
    """One graph for each stage of a plan, as keys of `Manifest.graphs`.

    Attributes:
        decoder: By segment.
        prune_llm: By step.
        passed_over: Reasons for not taking a variant that stands before the one that is taken, by its name. Graphs
            for native ops that the runtime does not have are not among them.
    """

    vision: str
    prune: str
    decoder: list[str]
    prune_llm: list[str]
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All of them, in the order in which they run."""
        return [self.vision, self.prune, *self.decoder, *self.prune_llm]


def unmet(needs: Needs, abilities: Abilities) -> str | None:
    """The first need that a runtime does not meet, as half a sentence about it; None where it meets all."""
    if needs.ir_version > abilities.ir_version:
        return f"it does not read ONNX IR version {needs.ir_version}"
    if needs.opset > abilities.opset:
        return f"it does not know opset {needs.opset}"
    if types := set(needs.types) - abilities.types:
        return f"it does not compute in {', '.join(sorted(types))}"
    if ops := set(needs.native_ops) - abilities.native_ops:
        return f"it has no native form of {', '.join(sorted(ops))}"
    for fault in abilities.faults:
        if fault.operator in needs.operators and fault.type in needs.types:
            return fault.because
    return None


def choose_graphs(manifest: Manifest, plan: Plan, abilities: Abilities, variant: str | None = None) -> ChosenGraphs:
    """The first graph of each stage whose needs a runtime meets.

    Args:
        manifest: of the bundle.
        plan: one of its plans.
        abilities: of the runtime.
        variant: for comparing variants: where a stage has this one, it and no other.

    Raises:
        UsageError: no stage has such a variant, or the runtime must not run it.
        MissingDependencyError: it meets the needs of no graph of a stage.
    """
    known = {manifest.graphs[name].variant for name in (*plan.graphs.vision, *plan.graphs.decoder[0])} - {""}
    if variant is not None and variant not in known:
        raise UsageError(f"dialect {variant!r} is not known; choose one of {', '.join(sorted(known, reverse=True))}")
    passed_over: dict[str, str] = {}

    def choose(names: Sequence[str]) -> str:
        able = {name: unmet(manifest.graphs[name].needs, abilities) for name in names}
        asked = [name for name in names if manifest.graphs[name].variant == variant] or names
        taken = next((name for name in asked if able[name] is None), None)
        if taken is None:
            raise _none_of(asked, able, manifest, plan, abilities, variant)
        for name in names[: names.index(taken)] if variant is None else ():
            if set(manifest.graphs[name].needs.native_ops) <= abilities.native_ops:
                passed_over.setdefault(manifest.graphs[name].variant, str(able[name]))
        return taken

    graphs = plan.graphs
    return ChosenGraphs(
        vision=choose(graphs.vision),
        prune=choose(graphs.prune),
        decoder=[choose(names) for names in graphs.decoder],
        prune_llm=[choose(names) for names in graphs.prune_llm],
        passed_over=passed_over,
    )


def notes_on(chosen: Iterable[ChosenGraphs], abilities: Abilities, manifest: Manifest) -> list[str]:
    """Sentences on the variants that were passed over, and those that run in their place; each once."""
    notes: dict[str, None] = {}
    for graphs in chosen:
        taken = manifest.graphs[graphs.decoder[0]].variant
        for variant, why in graphs.passed_over.items():
            notes[f"the {taken} graphs answer, because {abilities.title} must not run the {variant} ones: {why}"] = None
    return list(notes)


def _none_of(
    asked: Sequence[str],
    able: dict[str, str | None],
    manifest: Manifest,
    plan: Plan,
    abilities: Abilities,
    variant: str | None,
) -> UsageError | MissingDependencyError:
    """The error about a stage of which no graph that was asked for can be run."""
    why = able[asked[-1]]
    if variant is not None and any(reason is None for reason in able.values()):
        return UsageError(
            f"{abilities.title} must not run the {variant} graphs in {manifest.precision}, because {why}; leave the "
            "dialect out, and it runs those that it answers rightly with"
        )
    return MissingDependencyError(
        f"{abilities.title} runs no graph for {asked[-1]} of {plan.name}, because {why}; install a newer version, or "
        "see `vtexport list targets` for what runs such bundles"
    )
