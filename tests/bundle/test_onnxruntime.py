"""Abilities of the versions of ONNX Runtime, by the table of what was seen."""

from __future__ import annotations

import pytest
from packaging.version import Version

from vtexport.bundle.abilities import unmet
from vtexport.bundle.manifest import Needs
from vtexport.bundle.onnxruntime import abilities_of, newest_opset
from vtexport.errors import MissingDependencyError

VARIANTS = {"modern": (23, ["Attention", "Gemm"]), "classic": (20, ["Gemm", "MatMul"])}
# version: what it answers rightly with, in float32 and in float16
SEEN = {
    "1.18.0": ({"classic"}, {"classic"}),
    "1.18.1": ({"classic"}, {"classic"}),
    "1.19.2": ({"classic"}, {"classic"}),
    "1.20.1": ({"classic"}, {"classic"}),
    "1.21.1": ({"classic"}, {"classic"}),
    "1.22.1": ({"classic"}, {"classic"}),
    "1.23.0": ({"classic"}, {"classic"}),
    "1.23.1": ({"modern", "classic"}, {"classic"}),
    "1.23.2": ({"modern", "classic"}, {"classic"}),
    "1.24.1": ({"modern", "classic"}, {"classic"}),
    "1.24.4": ({"modern", "classic"}, {"classic"}),
    "1.25.0": ({"modern", "classic"}, {"modern", "classic"}),
    "1.31.1": ({"modern", "classic"}, {"modern", "classic"}),
    "1.32.0": ({"modern", "classic"}, {"modern", "classic"}),
}


def needs(variant: str, precision: str) -> Needs:
    """As a decoder graph states them; half precision has float32 beside it."""
    opset, operators = VARIANTS[variant]
    return Needs(ir_version=10, opset=opset, operators=operators, types=sorted({precision, "float32", "int64"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", SEEN)
def test_abilities_are_those_that_were_seen(version: str) -> None:
    abilities = abilities_of(version)
    assert abilities.title == f"ONNX Runtime {version}"
    for precision, right in zip(("float32", "float16"), SEEN[version], strict=True):
        assert {each for each in VARIANTS if unmet(needs(each, precision), abilities) is None} == right


@pytest.mark.parametrize("version", ["1.17.3", "1.16.0", "0.5"])
def test_too_old_for_any(version: str) -> None:
    with pytest.raises(MissingDependencyError, match=f"ONNX Runtime {version} cannot run bundles.*1.18.0 or newer"):
        abilities_of(version)


@pytest.mark.parametrize(
    ("version", "variant"),
    [
        ("1.25.0.dev20260101", "classic"),  # from before the release, so perhaps from before the repair
        ("1.25.0rc1", "classic"),
        ("1.25.1.dev20260101", "modern"),
        ("1.25", "modern"),
        ("1.26.0+cu128", "modern"),
        ("2.0.0", "modern"),
    ],
)
def test_other_spellings(version: str, variant: str) -> None:
    abilities = abilities_of(version)
    assert next(each for each in VARIANTS if unmet(needs(each, "float16"), abilities) is None) == variant


def test_a_version_that_says_nothing_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match="version 'unknown' does not say what it can run"):
        abilities_of("unknown")


def test_right_graphs_are_graphs_that_load() -> None:
    for version in sorted(SEEN, key=Version):
        for variant, (opset, _) in VARIANTS.items():
            if unmet(needs(variant, "float32"), abilities_of(version)) is None:
                assert newest_opset(version) >= opset
    assert newest_opset("1.23.0") == 23
    assert newest_opset("1.22.1") == 20
    assert newest_opset("1.17.3") == 0


def test_bfloat16_is_not_computed_in() -> None:
    assert unmet(needs("classic", "bfloat16"), abilities_of("1.32.0")) == "it does not compute in bfloat16"
