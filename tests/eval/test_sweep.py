"""Plans that a sweep builds, leaves out and compares, and their order; what builds is made up here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vtexport.bundle.manifest import Manifest
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import InputError, UsageError
from vtexport.eval.sweep import Builder, as_it_is, complete, plans_to_compare, pruned_plans

MakeBuilder = Callable[..., Builder]


@pytest.fixture
def folder(eval_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with the plans none, prunesid-8 and prunesid-16."""
    return Path(shutil.copytree(eval_bundle, tmp_path / "b"))


@pytest.fixture
def calls() -> list[tuple[str, Sequence[int] | None, str]]:
    """The builds so far, in order."""
    return []


@pytest.fixture
def make_builder(folder: Path, calls: list[Any]) -> MakeBuilder:
    """A builder of the methods none, pool, prunesid and random that builds nothing; pool gives squares alone."""

    def make(fails: dict[str, Exception] | None = None) -> Builder:
        methods = ["random", "prunesid", "none", "pool"]

        def plan_name(method: str, keep: int, manifest: Manifest) -> str:
            assert manifest.vision.largest.tokens == 64
            if method not in methods:
                raise UsageError(f"there is no {method}")
            if method == "pool" and keep not in {4, 16}:
                raise UsageError(f"pool cannot give {keep}")
            return f"{method}-{keep}"

        def build(method: str, budgets: Sequence[int] | None, precision: str) -> Bundle:
            if error := (fails or {}).get(method):
                raise error
            calls.append((method, budgets, precision))
            return open_bundle(folder)

        return Builder(methods, plan_name, build, lambda error: (str(error), 7))

    return make


def test_only_what_is_missing_is_built(folder: Path, make_builder: MakeBuilder, calls: list[Any]) -> None:
    told: list[str] = []
    bundle, left = complete(
        folder, make_builder(), ["prunesid", "pool", "none", "prunesid"], [32, 16], tell=told.append
    )
    assert calls == [("prunesid", [32], "fp32"), ("pool", [16], "fp32")]
    assert [(each.title, each.reason, each.exit_code) for each in left] == [("pool at 32", "pool cannot give 32", 0)]
    assert told == ["left out: pool at 32: pool cannot give 32"]
    assert bundle.folder == folder


def test_all_methods_at_the_usual_budgets(folder: Path, make_builder: MakeBuilder, calls: list[Any]) -> None:
    _, left = complete(folder, make_builder(), ["all"])
    assert calls == [
        ("pool", [16], "fp32"),
        ("prunesid", [192, 128, 64, 32], "fp32"),
        ("random", [192, 128, 64, 32, 16], "fp32"),
    ]
    assert [each.title for each in left] == ["pool at 192", "pool at 128", "pool at 64", "pool at 32"]


@pytest.mark.parametrize(("precision", "built"), [(None, "fp32"), ("fp16", "fp16")])
def test_the_unpruned_plan_comes_first(
    folder: Path, make_builder: MakeBuilder, calls: list[Any], precision: str | None, built: str
) -> None:
    """Of a bundle that is not there; without a precision in that of the default target."""
    builder = make_builder()
    aside = folder.rename(folder.with_name("aside"))
    build = builder.build

    def first(method: str, budgets: Sequence[int] | None, precision: str) -> Bundle:
        if not folder.exists():
            aside.rename(folder)
        return build(method, budgets, precision)

    builder = Builder(builder.methods, builder.plan_name, first, builder.explain)
    if built == "fp16":  # the stand-in is in fp32
        with pytest.raises(UsageError, match="is in fp32, not fp16"):
            complete(folder, builder, ["random"], [16], precision)
    else:
        complete(folder, builder, ["random"], [16], precision)
    assert calls[0] == ("none", None, built)


def test_another_precision_than_the_bundles(folder: Path, make_builder: MakeBuilder, calls: list[Any]) -> None:
    with pytest.raises(UsageError, match="is in fp32, not bf16; leave --precision out"):
        complete(folder, make_builder(), ["random"], [16], "bf16")
    assert calls == []


def test_a_method_that_is_not_known(folder: Path, make_builder: MakeBuilder) -> None:
    with pytest.raises(UsageError, match="there is no nothing"):
        complete(folder, make_builder(), ["nothing"], [16])


def test_a_build_that_fails_leaves_the_others(folder: Path, make_builder: MakeBuilder, calls: list[Any]) -> None:
    told: list[str] = []
    builder = make_builder({"random": InputError("the disk is full")})
    _, left = complete(folder, builder, ["random", "prunesid"], [32, 16], tell=told.append)
    assert calls == [("prunesid", [32], "fp32")]
    assert [(each.method, each.keep, each.reason, each.exit_code) for each in left] == [
        ("random", 32, "the disk is full", 7),
        ("random", 16, "the disk is full", 7),
    ]
    assert told == ["left out: random at 32, 16: the disk is full"]
    with pytest.raises(InputError, match="the disk is full"):  # where nothing is left
        complete(folder, builder, ["random"], [32])
    with pytest.raises(UsageError, match="wrong"):  # it would be every method's
        complete(folder, make_builder({"random": UsageError("wrong")}), ["random", "prunesid"], [32])


def test_what_is_there(folder: Path) -> None:
    told: list[str] = []
    bundle, left = as_it_is(folder, ["prunesid", "pool"], [8, 9], told.append)
    assert [each.title for each in left] == ["prunesid at 9", "pool at 8", "pool at 9"]
    assert told == [f"left out: {each.title}: {each.reason}" for each in left]
    assert plans_to_compare(bundle, left, ["prunesid", "pool"], [8, 9]) == ["none", "prunesid-8"]
    _, left = as_it_is(folder, ["pool", "prunesid"])
    assert [(each.title, each.keep) for each in left] == [("pool", 0)]
    assert as_it_is(folder)[1] == as_it_is(folder, ["all"])[1] == []


def test_order_and_choice(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert pruned_plans(bundle) == pruned_plans(bundle, ["all"]) == ["prunesid-16", "prunesid-8"]
    assert pruned_plans(bundle, ["prunesid"], [8, 16]) == ["prunesid-16", "prunesid-8"]
    assert pruned_plans(bundle, ["none"]) == []
    assert plans_to_compare(bundle, []) == ["none", "prunesid-16", "prunesid-8"]
    bundle.manifest.plans = [plan for plan in bundle.manifest.plans if plan.method != "none"]
    assert plans_to_compare(bundle, []) == ["prunesid-16", "prunesid-8"]


def test_nothing_to_compare(folder: Path) -> None:
    bundle, left = as_it_is(folder, ["pool"], [16])
    with pytest.raises(UsageError, match=r"has no plan to compare \(pool at 16: .*\); give --model to build some"):
        plans_to_compare(bundle, left, ["pool"], [16])
    with pytest.raises(UsageError, match="has no plan to compare; give --model to build some"):
        plans_to_compare(bundle, [], ["prunesid"], [9])
