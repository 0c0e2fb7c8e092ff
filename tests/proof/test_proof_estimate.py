"""Estimates of memory and time, which decide whether a build makes a proof by itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vtexport.bundle.reader import open_bundle
from vtexport.proof import estimate as module
from vtexport.proof.estimate import estimate


def test_it_grows_with_weights_tokens_and_cases(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_speed", lambda: (1e10, 1e10))
    manifest = open_bundle(tiny_bundle).manifest
    small = estimate(manifest, manifest.plans, 2, 32)
    assert small.memory_bytes < 1e9
    large = {
        part: [msgspec.structs.replace(each, bytes=each.bytes * 10_000) for each in stored]
        for part, stored in manifest.weights.items()
    }
    heavy = msgspec.structs.replace(manifest, weights=large)
    parameters = sum(each.bytes for stored in large.values() for each in stored) / 4
    one, two = (estimate(heavy, manifest.plans[:count], 2, 32) for count in (1, 2))
    assert 4 * parameters < one.memory_bytes < 6 * parameters + 1e9
    assert one.memory_bytes == two.memory_bytes
    assert small.seconds < one.seconds < two.seconds < estimate(heavy, manifest.plans, 4, 32).seconds
    assert "GB of memory and" in str(one)


def test_half_precision_counts_as_many_parameters(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    half = {
        part: [msgspec.structs.replace(each, bytes=each.bytes // 2, dtype="float16") for each in stored]
        for part, stored in manifest.weights.items()
    }
    halved = msgspec.structs.replace(manifest, weights=half)
    both = [estimate(each, manifest.plans, 2, 32).memory_bytes for each in (manifest, halved)]
    assert both[0] == both[1]
