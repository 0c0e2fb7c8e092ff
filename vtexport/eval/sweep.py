"""The plans of a sweep: building those that a bundle does not have yet, and choosing and ordering those to compare.

Building is the host wing's, which nothing here imports: the caller hands it in as a `Builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtexport.backends.targets import DEFAULT_TARGET, find_target
from vtexport.bundle.manifest import Manifest, Plan
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.dtypes import DTYPES
from vtexport.errors import UsageError
from vtexport.eval.evaluate import unpruned_plan
from vtexport.eval.report import UNPRUNED

BUDGETS = (192, 128, 64, 32, 16)  # where none are named
ALL = "all"  # in place of methods' names


@dataclass(frozen=True)
class LeftOut:
    """A method at a budget that is not compared, and why."""

    method: str
    keep: int  # 0 where no budget is named
    reason: str
    exit_code: int = 0  # of a build that failed; a budget that the method cannot give is no failure

    @property
    def title(self) -> str:
        """`vitcop at 16`, or the method alone."""
        return f"{self.method} at {self.keep}" if self.keep else self.method


@dataclass(frozen=True)
class Builder:
    """The exporter, as far as a sweep needs it."""

    methods: Sequence[str]  # by name, the one that keeps all tokens among them
    # (a method that prunes, budget, the bundle) -> the plan's name; UsageError where there is none
    plan_name: Callable[[str, int, Manifest], str]
    # (method, budgets or None for all tokens, "fp32" or another precision) -> the bundle with these plans added
    build: Callable[[str, Sequence[int] | None, str], Bundle]
    # An error -> its sentence and exit code
    explain: Callable[[Exception], tuple[str, int]]


def complete(
    folder: Path,
    builder: Builder,
    methods: Sequence[str],
    budgets: Sequence[int] | None = None,
    precision: str | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[Bundle, list[LeftOut]]:
    """The bundle with every plan that is asked for and possible, the unpruned one among them; what is not there.

    Args:
        folder: the bundle's, which need not exist.
        builder: what builds missing plans.
        methods: names, or `ALL`.
        budgets: `BUDGETS` when left out.
        precision: of a bundle that does not exist yet, the default target's own when left out; else that of the bundle.
        tell: called with a line for what is left out, as it is found.

    Raises:
        UsageError: a method is not known, or the bundle has another precision.
        Exception: the first of the builds that failed, where nothing is left to compare.
    """
    wanted = _named(methods, sorted(set(builder.methods) - {UNPRUNED}))
    if not folder.exists():
        builder.build(UNPRUNED, None, precision or find_target(DEFAULT_TARGET).default_precision)
    bundle = open_bundle(folder)
    own = DTYPES[bundle.manifest.precision].precision
    assert own is not None
    if precision not in {None, own}:
        raise UsageError(f"{bundle.folder} is in {own}, not {precision}; leave --precision out")
    if unpruned_plan(bundle) is None:
        bundle = builder.build(UNPRUNED, None, own)
    left: list[LeftOut] = []
    failures: list[Exception] = []
    for method in wanted:
        missing = []
        for keep in budgets or BUDGETS:
            try:
                name = builder.plan_name(method, keep, bundle.manifest)
            except UsageError as error:
                if method not in builder.methods:
                    raise
                left.append(LeftOut(method, keep, str(error)))
                tell(f"left out: {left[-1].title}: {error}")
            else:
                if all(plan.name != name for plan in bundle.manifest.plans):
                    missing.append(keep)
        if missing:
            try:
                bundle = builder.build(method, missing, own)
            except UsageError:  # of the command, so of every method
                raise
            except Exception as error:  # the others are worth their sweep
                failures.append(error)
                reason, code = builder.explain(error)
                left += [LeftOut(method, keep, reason, code) for keep in missing]
                tell(f"left out: {method} at {', '.join(map(str, missing))}: {reason}")
    if failures and not pruned_plans(bundle, methods, budgets):
        raise failures[0]
    return bundle, left


def as_it_is(
    folder: Path,
    methods: Sequence[str] | None = None,
    budgets: Sequence[int] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[Bundle, list[LeftOut]]:
    """The bundle without building anything, and what is asked for and not in it; arguments as in `complete`."""
    bundle = open_bundle(folder)
    left: list[LeftOut] = []
    plans = bundle.manifest.plans
    known = sorted({plan.method for plan in plans} - {UNPRUNED})
    there = {(plan.method, plan.keep) for plan in plans} | {(plan.method, 0) for plan in plans}
    for method in _named(methods or (), known):
        for keep in budgets or (0,):
            if (method, keep) not in there:
                left.append(LeftOut(method, keep, f"{bundle.folder} has no such plan; give --model to build it"))
                tell(f"left out: {left[-1].title}: {left[-1].reason}")
    return bundle, left


def plans_to_compare(
    bundle: Bundle, left: Sequence[LeftOut], methods: Sequence[str] | None = None, budgets: Sequence[int] | None = None
) -> list[str]:
    """The unpruned plan, where there is one, and the pruned ones that are asked for, by name.

    Raises:
        UsageError: there is no pruned one; with the first thing that was left out.
    """
    plans = pruned_plans(bundle, methods, budgets)
    if not plans:
        reasons = f" ({left[0].title}: {left[0].reason})" if left else ""
        raise UsageError(f"{bundle.folder} has no plan to compare{reasons}; give --model to build some")
    unpruned = unpruned_plan(bundle)
    return plans if unpruned is None else [unpruned, *plans]


def pruned_plans(
    bundle: Bundle, methods: Sequence[str] | None = None, budgets: Sequence[int] | None = None
) -> list[str]:
    """Names of pruned plans by method and falling budget; those of other parameters than the defaults included."""
    pruned = [plan for plan in bundle.manifest.plans if plan.method != UNPRUNED]
    wanted = _named(methods or [ALL], [plan.method for plan in pruned])
    chosen = [plan for plan in pruned if plan.method in wanted and (budgets is None or plan.keep in budgets)]
    return [plan.name for plan in sorted(chosen, key=_order)]


def _named(methods: Sequence[str], known: Sequence[str]) -> list[str]:
    """Methods by name, each once and the one that prunes nothing left aside."""
    if list(methods) == [ALL]:
        return list(known)
    return list(dict.fromkeys(name.strip() for name in methods if name.strip() != UNPRUNED))


def _order(plan: Plan) -> tuple[str, int]:
    return plan.method, -plan.keep
