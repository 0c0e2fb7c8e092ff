"""Plans of a bundle that a measurement is about."""

from __future__ import annotations

from collections.abc import Sequence

from vtexport.bundle.reader import Bundle
from vtexport.errors import UsageError
from vtexport.measure.answer import Contender
from vtexport.measure.report import UNPRUNED


def contenders(
    bundle: Bundle, named: Sequence[str] = (), keep: Sequence[int] = (), method: str | None = None
) -> list[Contender]:
    """The plans of those names, or those of one method with the budgets `keep` and the unpruned one, or all.

    Args:
        bundle: whose plans.
        named: plans, adaptive ones included.
        keep: budgets; excludes `named`.
        method: of the plans with these budgets, where several methods have them.

    Raises:
        UsageError: a plan is not there, or is named twice; the budgets are those of several methods or of none, or
            there is no unpruned plan to hold them to.
    """
    if named and keep:
        raise UsageError("plans and budgets exclude each other; give --plan or --keep")
    if method is not None and not keep:
        raise UsageError(f"the method {method} is named without budgets; give --keep, or name plans with --plan")
    names = _of_budgets(bundle, keep, method) if keep else list(named) or [plan.name for plan in bundle.manifest.plans]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UsageError(f"plan {twice} is named twice; name each plan once")
    for name in names:
        bundle.plan_or_adaptive(name)
    return [Contender(bundle, name) for name in names]


def _of_budgets(bundle: Bundle, keep: Sequence[int], method: str | None) -> list[str]:
    plans = [plan for plan in bundle.manifest.plans if plan.method != UNPRUNED and method in (None, plan.method)]
    there = ", ".join(plan.name for plan in bundle.manifest.plans)
    methods = {plan.method for plan in plans if plan.keep in keep}
    complete = sorted(each for each in methods if set(keep) <= {plan.keep for plan in plans if plan.method == each})
    if not complete:
        raise UsageError(
            f"{bundle.folder} has no method with the budgets {', '.join(map(str, keep))} (its plans: {there}); build "
            "them, or give others"
        )
    if len(complete) > 1:
        raise UsageError(
            f"{bundle.folder} has these budgets of {' and '.join(complete)}; choose one of them with --method"
        )
    chosen: list[str] = []
    for budget in dict.fromkeys(keep):
        found = [plan.name for plan in plans if (plan.method, plan.keep) == (complete[0], budget)]
        if len(found) > 1:
            raise UsageError(f"{bundle.folder} has {' and '.join(found)} with {budget} tokens; choose with --plan")
        chosen += found
    unpruned = next((plan.name for plan in bundle.manifest.plans if plan.method == UNPRUNED), None)
    if unpruned is None:
        raise UsageError(
            f"{bundle.folder} has no unpruned plan, which --keep is held to; add it with `vtexport build --method none`"
        )
    return [unpruned, *chosen]
