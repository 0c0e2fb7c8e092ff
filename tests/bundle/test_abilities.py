"""Choice of one graph a stage: the first whose needs a runtime meets, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vtexport.bundle.abilities import Abilities, Fault, choose_graphs, notes_on, unmet
from vtexport.bundle.manifest import Manifest, Needs
from vtexport.bundle.reader import open_bundle
from vtexport.dtypes import DTYPES
from vtexport.errors import MissingDependencyError, UsageError

PLAN = "prunesid-16"
ALL = Abilities("a runtime", ir_version=10, opset=23, types=frozenset(DTYPES))
NEEDS = Needs(ir_version=10, opset=23, operators=["Attention", "Gemm"], types=["float32"])


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return open_bundle(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"ir_version": 9}, "it does not read ONNX IR version 10"),
        ({"opset": 22}, "it does not know opset 23"),
        ({"types": frozenset({"int64"})}, "it does not compute in float32"),
        ({"faults": (Fault("Attention", "float32", "its Attention is wrong"),)}, "its Attention is wrong"),
        ({"faults": (Fault("Attention", "float16", "its Attention is wrong"),)}, None),
        ({"faults": (Fault("Softmax", "float32", "its Softmax is wrong"),)}, None),
    ],
)
def test_needs_that_are_not_met(changed: dict[str, object], why: str | None) -> None:
    assert unmet(NEEDS, replace(ALL, **changed)) == why  # type: ignore[arg-type]


def test_native_ops_are_needed_where_there_is_no_function_body() -> None:
    needs = Needs(ir_version=10, opset=20, operators=[], types=["float32"], native_ops=["VtxPruneSID"])
    assert unmet(needs, ALL) == "it has no native form of VtxPruneSID"
    assert unmet(needs, replace(ALL, native_ops=frozenset({"VtxPruneSID"}))) is None


def test_the_first_graph_of_each_stage_whose_needs_are_met(manifest: Manifest) -> None:
    plan = manifest.plans[0]
    graphs = choose_graphs(manifest, plan, ALL)
    assert graphs.names == ["vision.cls_attention.modern", f"{PLAN}.prune", "decoder_0.modern"]
    assert notes_on([graphs], ALL, manifest) == []
    older = replace(ALL, opset=20)
    graphs = choose_graphs(manifest, plan, older)
    assert graphs.names == ["vision.cls_attention.classic", f"{PLAN}.prune", "decoder_0.classic"]
    note = "the classic graphs answer, because a runtime must not run the modern ones: it does not know opset 23"
    assert notes_on([graphs, graphs], older, manifest) == [note]
    native = replace(ALL, native_ops=frozenset({"VtxPruneSID"}))
    assert choose_graphs(manifest, plan, native).prune == f"{PLAN}.prune.native"


def test_stages_are_chosen_each_for_itself(manifest: Manifest) -> None:
    """A fault in an operator of one stage does not send the others to other graphs."""
    manifest.graphs["vision.cls_attention.modern"].needs.operators.remove("Attention")
    faulty = replace(ALL, faults=(Fault("Attention", "float32", "its Attention is wrong"),))
    graphs = choose_graphs(manifest, manifest.plans[0], faulty)
    assert (graphs.vision, graphs.decoder) == ("vision.cls_attention.modern", ["decoder_0.classic"])


def test_a_variant_for_comparisons(manifest: Manifest) -> None:
    plan = manifest.plans[0]
    assert choose_graphs(manifest, plan, ALL, "classic").decoder == ["decoder_0.classic"]
    with pytest.raises(UsageError, match="dialect 'latin' is not known; choose one of modern, classic"):
        choose_graphs(manifest, plan, ALL, "latin")
    with pytest.raises(UsageError, match=r"a runtime must not run the modern graphs in float32, because .* opset 23"):
        choose_graphs(manifest, plan, replace(ALL, opset=20), "modern")


def test_a_runtime_that_takes_none_is_told_why(manifest: Manifest) -> None:
    with pytest.raises(MissingDependencyError, match=f"a runtime runs no graph for vision.* of {PLAN}, because .* 20"):
        choose_graphs(manifest, manifest.plans[0], replace(ALL, opset=19))
