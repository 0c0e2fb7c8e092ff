"""From a method, its parameters and a budget to a plan: what runs where, checked before any work is done."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtexport.errors import InputError, UsageError
from vtexport.models.spec import ModelSpec
from vtexport.pruning import Method, Parameters, get_method, list_methods
from vtexport.pruning.llm.step import LLMStep
from vtexport.pruning.method import Limit
from vtexport.pruning.registry import make_parameters
from vtexport.pruning.signals import SIGNALS


@dataclass(frozen=True)
class Plan:
    """One method at one budget. `options` are the parameters the user set, `parameters` all of them, resolved."""

    name: str
    method: Method
    options: dict[str, Any]
    parameters: dict[str, Any]
    keep: int
    encoder: Method  # whose op stands behind the vision tower; the method itself unless it acts elsewhere
    encoder_parameters: dict[str, Any]  # resolved
    visual_tokens: int  # that enter the language model
    steps: tuple[LLMStep, ...]  # inside it
    segments: tuple[tuple[int, int], ...]  # first layer and number of layers of each
    signals: tuple[str, ...]  # of `vtexport.pruning.signals`
    position_span: int
    reports: dict[str, list[Limit]] = field(default_factory=dict)  # numbers of each image and what they have to hold
    remarks: tuple[str, ...] = ()  # what a user should know of this choice

    @property
    def vision_signals(self) -> tuple[str, ...]:
        """Those that the vision graph gives, in the order of its outputs."""
        return tuple(name for name, each in SIGNALS.items() if name in self.signals and each.source == "vision")


def check_method(method_name: str, options: Mapping[str, Any]) -> None:
    """Refuses an unknown method or parameter, which needs no checkpoint to be seen.

    Raises:
        UsageError: the name or a value is not allowed.
    """
    make_parameters(get_method(method_name), options)


def make_plans(
    method_name: str, budgets: Sequence[int] | None, options: Mapping[str, Any], spec: ModelSpec
) -> tuple[Plan, ...]:
    """A plan for each budget.

    Raises:
        UsageError: an unknown method or parameter, a budget the method cannot give, no budget where it needs one.
    """
    method = get_method(method_name)
    tokens, grid = spec.vision.tokens, (spec.vision.grid_height, spec.vision.grid_width)
    given = make_parameters(method, options)
    if not budgets and method_name != "none":
        raise UsageError(
            f"--method {method_name} needs a budget; give --keep N with N up to {tokens}, for example --keep 64"
        )
    if budgets and len(set(budgets)) != len(budgets):
        raise UsageError(f"--keep names a budget twice: {', '.join(map(str, budgets))}; give each once")
    plans = []
    wanted: Sequence[int | None] = budgets or [None]
    for budget in wanted:
        schedule = method.schedule(given, grid=grid, keep=budget, layers=spec.decoder.num_hidden_layers)
        encoder, resolved, keep = schedule.encoder, schedule.parameters, schedule.keep
        shown = resolved if schedule.shown is None else schedule.shown
        for name in encoder.signals(resolved):
            if SIGNALS[name].source == "caller":
                raise UsageError(
                    f"{method.name} needs {SIGNALS[name].about} with these parameters, which no bundle has; "
                    "`vtexport list methods` shows the others"
                )
        contiguous = encoder.positions == "contiguous"
        limits = encoder.limits(resolved, grid=grid, keep=schedule.visual_tokens)
        edges = [0, *(step.layer for step in schedule.steps), spec.decoder.num_hidden_layers]
        plans.append(
            Plan(
                name=_plan_name(method, given, keep),
                method=method,
                options={name: getattr(given, name) for name in options},
                parameters=dataclasses.asdict(shown),
                keep=keep,
                encoder=encoder,
                encoder_parameters=dataclasses.asdict(resolved),
                visual_tokens=schedule.visual_tokens,
                steps=schedule.steps,
                segments=tuple((start, end - start) for start, end in itertools.pairwise(edges)),
                signals=encoder.signals(resolved),
                position_span=schedule.visual_tokens if contiguous else tokens,
                reports={
                    name: [limit for limit in limits if limit.report == name] for name in encoder.reports(resolved)
                },
                remarks=method.remarks(shown, grid=grid, keep=keep),
            )
        )
    return tuple(plans)


def check_stored(plans: Sequence[Plan], spec: ModelSpec, absent: Sequence[str]) -> None:
    """Refuses plans that read what the checkpoint lacks: `absent` are its missing tensors that not every graph reads.

    Raises:
        InputError: naming the method and the first tensor.
    """
    vision = spec.vision
    for plan in plans:
        run = vision.blocks_run(plan.vision_signals)
        behind = tuple(vision.block_prefix.format(number) for number in range(vision.feature_layer, run))
        lacking = [name for name in absent if name.startswith(behind)]
        if lacking:
            raise InputError(
                f"{plan.method.name} reads the outputs of the vision tower's blocks up to the last of {run}, and the "
                f"checkpoint lacks {len(lacking)} tensors of those behind the feature layer ({lacking[0]}, ...); give "
                "another method, or weights with the whole tower"
            )


@dataclass(frozen=True)
class Route:
    """Plans of one method at several budgets, of which each image gets one; `mean` is the average to aim at."""

    name: str
    plans: tuple[str, ...]  # by ascending budget
    mean: int


def make_route(plans: Sequence[Plan], mean: int | None) -> Route:
    """A route over these plans, which differ in their budgets; the mean is the middle budget when left out.

    Raises:
        UsageError: the method has no rule for it, there is one budget, or the mean lies outside the budgets.
    """
    first = plans[0]
    if not first.method.dynamic(first.method.parameters(**first.parameters)):
        known = ", ".join(each.name for each in list_methods() if each.dynamic(each.parameters()))
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
    given = first.method.parameters(**first.options)
    return Route(_plan_name(first.method, given, "dynamic"), tuple(plan.name for plan in ordered), mean)


def _plan_name(method: Method, given: Parameters, keep: int | str) -> str:
    """`prunesid-64`, or `prunesid-64-order-raster` where a parameter is not left at its default; of a route, `dynamic`
    stands for the budget.
    """
    if method.name == "none":
        return method.name
    parts = [method.name, str(keep)]
    for spec in dataclasses.fields(given):
        value = getattr(given, spec.name)
        if value != spec.default:
            shown = (
                str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
            )
            parts += [spec.name.replace("_", "-"), str(shown)]
    return "-".join(parts)
