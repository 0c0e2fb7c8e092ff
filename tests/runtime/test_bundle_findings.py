"""Graphs of a bundle that backends and targets would run, as `doctor` says them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtexport.bundle.reader import open_bundle
from vtexport.runtime import bundle_findings


def test_this_backend_and_the_targets_take_different_graphs(tiny_bundle: Path) -> None:
    said = {each.what: each for each in bundle_findings.graphs(open_bundle(tiny_bundle))}
    plans = "(prunesid-16, prunesid-32)"
    here = said[f"backend onnxruntime takes vision modern, prune with function bodies, decoder modern {plans}"]
    assert (here.status, here.next_step) == ("ok", None)
    older = said[f"target orin-jetpack-6.2 takes vision classic, prune with function bodies, decoder classic {plans}"]
    assert older.next_step == "modern graphs are passed over: it does not know opset 23"


def test_an_onnxruntime_that_passes_graphs_over(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    (here,) = (each for each in bundle_findings.graphs(open_bundle(tiny_bundle)) if "backend" in each.what)
    assert here.what.startswith("backend onnxruntime takes vision classic, prune with function bodies, decoder classic")
    assert here.next_step == "modern graphs are passed over: it does not know opset 23"


def test_graphs_that_nothing_here_runs(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    for graph in bundle.manifest.graphs.values():
        graph.needs.opset = 99
    (here,) = (each for each in bundle_findings.graphs(bundle) if "backend" in each.what)
    assert (here.status, here.what) == ("missing", "backend onnxruntime runs no graphs of every plan")
    assert "it does not know opset 99" in str(here.next_step)
