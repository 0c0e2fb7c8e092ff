"""From a method, its options and a budget to a plan: what runs where, checked before any work is done."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vtexport.bundle.manifest import Manifest, Segment
from vtexport.errors import InputError, UsageError
from vtexport.models.parts import ModelSpec
from vtexport.pruning import Method, ModelShape, Options, PlacedOp, Schedule, list_methods
from vtexport.pruning.signals import SIGNALS
from vtexport.pruning.types import Limit


@dataclass(frozen=True)
class PlanSpec:
    """One method at one budget in one model: a schedule, cut into what the exporters write."""

    name: str
    method: Method
    options: Options
    schedule: Schedule
    segments: tuple[Segment, ...]

    @property
    def keep(self) -> int:
        """The budget."""
        return self.schedule.keep

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that enter the language model."""
        return self.schedule.visual_tokens

    @property
    def first(self) -> PlacedOp:
        """The op before the language model."""
        return self.schedule.first

    @property
    def steps(self) -> tuple[PlacedOp, ...]:
        """The ops inside it."""
        return self.schedule.steps

    @property
    def reports(self) -> dict[str, list[Limit]]:
        """Numbers of each image, by name, with what they have to hold."""
        limits = self.schedule.limits
        names = (report.name for report in self.first.op.reports())
        return {name: [limit for limit in limits if limit.report == name] for name in names}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that a user should know of this choice."""
        return self.schedule.remarks + self.schedule.substitutions

    @property
    def vision_signals(self) -> tuple[str, ...]:
        """Signals that the vision graph gives, in the order of its outputs."""
        signals = self.schedule.signals
        return tuple(name for name, each in SIGNALS.items() if name in signals and each.source == "vision")


def shape_of(spec: ModelSpec) -> ModelShape:
    """The facts of a model that methods plan by."""
    vision = spec.vision
    return ModelShape(
        (vision.grid_height, vision.grid_width), spec.decoder.num_hidden_layers, has_cls=vision.cls_rows > 0
    )


def bundle_shape(manifest: Manifest) -> ModelShape:
    """The same of the model in a bundle, for plans that are to be added to it."""
    (view,) = manifest.vision.largest.views
    grid = view.grid_height, view.grid_width
    return ModelShape(grid, manifest.decoder.num_hidden_layers, has_cls=manifest.vision.cls_rows > 0)


def make_plans(
    method: Method, budgets: Sequence[int] | None, options: Options, shape: ModelShape
) -> tuple[PlanSpec, ...]:
    """A plan for each budget.

    Raises:
        UsageError: a budget or an option that does not fit the model, no budget where the method needs one.
    """
    if not budgets and method.name != "none":
        raise UsageError(
            f"--method {method.name} needs a budget; give --keep N with N up to {shape.tokens}, for example --keep 64"
        )
    if budgets and len(set(budgets)) != len(budgets):
        raise UsageError(f"--keep names a budget twice: {', '.join(map(str, budgets))}; give each once")
    wanted: Sequence[int | None] = budgets or [None]
    return tuple(_plan(method, options, shape, budget) for budget in wanted)


def _plan(method: Method, options: Options, shape: ModelShape, budget: int | None) -> PlanSpec:
    schedule = method.plan(options, shape, budget)
    for name in schedule.signals:
        if SIGNALS[name].source == "caller":
            raise UsageError(
                f"{method.name} needs {SIGNALS[name].about} with these parameters, which no bundle has; "
                "`vtexport list methods` shows the others"
            )
    edges = [0, *(step.layer for step in schedule.steps), shape.layers]
    return PlanSpec(
        name=_plan_name(method, options, schedule.keep),
        method=method,
        options=options,
        schedule=schedule,
        segments=tuple(Segment(first_layer=start, layers=end - start) for start, end in itertools.pairwise(edges)),
    )


def check_parts(plans: Sequence[PlanSpec], spec: ModelSpec) -> None:
    """Refuses plans that are not defined for a model's parts.

    Raises:
        UsageError: naming the method, and what of the model it has no rule for.
    """
    window = next((each for each in spec.decoder.windows if each is not None), None)
    layers = spec.vision.feature_layers
    for plan in plans:
        if plan.steps and window is not None:
            raise UsageError(
                f"{plan.method.name} prunes inside the language model, and this one's layers see a sliding window of "
                f"{window} tokens, for which no method says what is pruned; give a method that prunes before it"
            )
        if "similarity_features" in plan.vision_signals and len(layers) > 1:
            raise UsageError(
                f"{plan.method.name} compares features of one layer's width, and this model joins those of layers "
                f"{', '.join(map(str, layers))}; give another method"
            )


def check_stored(plans: Sequence[PlanSpec], spec: ModelSpec, absent: Sequence[str]) -> None:
    """Refuses plans that read what the checkpoint lacks: `absent` are its missing tensors that not every graph reads.

    Raises:
        InputError: naming the method and the first tensor.
    """
    vision = spec.vision
    for plan in plans:
        run = vision.blocks_run(plan.vision_signals)
        read = vision.parts_read(range(run))
        lacking = [name for name in absent if name.startswith(read)]
        if lacking:
            raise InputError(
                f"{plan.method.name} reads the outputs of the vision tower's blocks up to the last of {run}, and the "
                f"checkpoint lacks {len(lacking)} tensors of those behind the feature layer ({lacking[0]}, ...); give "
                "another method, or weights with the whole tower"
            )


@dataclass(frozen=True)
class AdaptivePlanSpec:
    """Plans of one method at several budgets, of which each image gets one; `mean` is the average to aim at."""

    name: str
    plans: tuple[str, ...]  # by ascending budget
    mean: int


def make_adaptive_plan(plans: Sequence[PlanSpec], mean: int | None) -> AdaptivePlanSpec:
    """An adaptive plan over these plans, which differ in their budgets; the mean is the middle budget when left out.

    Raises:
        UsageError: the method has no rule for it, there is one budget, or the mean lies outside the budgets.
    """
    first = plans[0]
    if not first.schedule.adaptive:
        known = ", ".join(each.name for each in list_methods() if each.adaptive)
        raise UsageError(
            f"--dynamic is not defined for {first.method.name} with these parameters; leave it out or give --method "
            f"{known} with its defaults"
        )
    ordered = sorted(plans, key=lambda plan: plan.keep)
    budgets = [plan.keep for plan in ordered]
    if len(budgets) < 2:
        raise UsageError(f"--dynamic chooses among budgets and there is only {budgets[0]}; give several, --keep 32,64")
    mean = int(statistics.median(budgets)) if mean is None else mean
    if isinstance(mean, bool) or not isinstance(mean, int) or not budgets[0] <= mean <= budgets[-1]:
        raise UsageError(f"--mean {mean} is not between the budgets; give a number from {budgets[0]} to {budgets[-1]}")
    return AdaptivePlanSpec(
        _plan_name(first.method, first.options, "dynamic"), tuple(plan.name for plan in ordered), mean
    )


def _plan_name(method: Method, options: Options, keep: int | str) -> str:
    """`prunesid-64`, or `prunesid-64-order-raster` where an option is not left at its default; of an adaptive plan,
    `dynamic`
    stands for the budget.
    """
    if method.name == "none":
        return method.name
    parts = [method.name, str(keep)]
    for name, value in options.changed().items():
        shown = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
        parts += [name.replace("_", "-"), str(shown)]
    return "-".join(parts)
