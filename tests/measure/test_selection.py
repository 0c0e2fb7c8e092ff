"""Plans that a measurement is about."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import UsageError
from vtexport.measure.selection import contenders


def names(bundle: Bundle, *args: object) -> list[str]:
    return [each.name for each in contenders(bundle, *args)]  # type: ignore[arg-type]


def test_all_named_or_of_budgets(eval_bundle: Path) -> None:
    bundle = open_bundle(eval_bundle)
    assert names(bundle) == ["none", "prunesid-8", "prunesid-16"]
    assert names(bundle, ["prunesid-16", "none"]) == ["prunesid-16", "none"]
    assert names(bundle, (), [16, 8]) == ["none", "prunesid-16", "prunesid-8"]
    assert names(bundle, (), [8], "prunesid") == ["none", "prunesid-8"]
    (adaptive,) = bundle.manifest.adaptive_plans
    facts = contenders(bundle, [adaptive.name])[0].facts()
    assert (facts.method, facts.keep, facts.tokens_per_layer) == (None, None, None)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((["nope"],), "has no plan 'nope'"),
        ((["none", "none"],), "plan none is named twice"),
        ((["none"], [8]), "exclude each other"),
        (((), [8, 9]), "has no method with the budgets 8, 9"),
        (((), [8], "nuwa"), "has no method with the budgets 8"),
        (((), (), "nuwa"), "the method nuwa is named without budgets"),
    ],
)
def test_what_cannot_be_chosen(eval_bundle: Path, args: tuple[object, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        names(open_bundle(eval_bundle), *args)


def test_budgets_take_an_unpruned_plan(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="add it with `vtexport build --method none`"):
        names(open_bundle(tiny_bundle), (), [16])


def test_budgets_of_two_methods_take_a_name(eval_bundle: Path) -> None:
    bundle = open_bundle(eval_bundle)
    manifest = msgspec.structs.replace(
        bundle.manifest,
        plans=[*bundle.manifest.plans, msgspec.structs.replace(bundle.plan("prunesid-8"), name="x-8", method="x")],
    )
    both = Bundle(bundle.folder, manifest)
    with pytest.raises(UsageError, match="these budgets of prunesid and x; choose one of them with --method"):
        names(both, (), [8])
    assert names(both, (), [8], "x") == ["none", "x-8"]
