"""The ranges of lengths that a decoder's engine is built for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vtexport.backends.trt.profiles import profiles
from vtexport.bundle.manifest import Manifest
from vtexport.bundle.reader import open_bundle
from vtexport.errors import UsageError


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    """Budgets 16 and 32, 256 positions."""
    return open_bundle(tiny_bundle).manifest


def test_a_graph_of_fixed_shapes_has_none(manifest: Manifest) -> None:
    assert profiles(manifest, manifest.graphs["prunesid-16.prune"]) == []
    assert profiles(manifest, manifest.graphs["vision.cls_attention.modern"]) == []


def test_a_prefill_for_each_budget_and_decode(manifest: Manifest) -> None:
    graph = manifest.graphs["decoder_0.modern"]
    found = {profile.name: profile.shapes for profile in profiles(manifest, graph, text_tokens=100)}
    assert list(found) == ["prefill-16", "prefill-32", "decode"]
    for shapes in found.values():
        assert set(shapes) == {tensor.name for tensor in graph.inputs}
    assert found["prefill-16"]["inputs_embeds"] == [[1, 17, 72], [1, 80, 72], [1, 116, 72]]
    assert found["prefill-32"]["position_ids"] == [[1, 33], [1, 96], [1, 132]]
    assert found["prefill-32"]["past_key_values.2.value"] == [[1, 0, 2, 16]] * 3
    assert found["decode"]["position_ids"][:2] == [[1, 1], [1, 1]]
    assert found["decode"]["past_key_values.0.key"] == [[1, 1, 2, 16], [1, 224, 2, 16], [1, 255, 2, 16]]


@pytest.mark.parametrize("text_tokens", [1, 20, 512, 100_000])
def test_ranges_are_in_order_and_inside_the_models_positions(manifest: Manifest, text_tokens: int) -> None:
    for profile in profiles(manifest, manifest.graphs["decoder_0.modern"], text_tokens):
        for least, usual, most in profile.shapes.values():
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        assert profile.shapes["position_ids"][2][1] <= 256


def test_lengths_that_cannot_be(manifest: Manifest) -> None:
    graph = manifest.graphs["decoder_0.modern"]
    with pytest.raises(UsageError, match="text_tokens is 0"):
        profiles(manifest, graph, 0)
    decoder = msgspec.structs.replace(manifest.decoder, max_position_embeddings=32)
    with pytest.raises(UsageError, match="32 visual tokens leave no place for text in the model's 32 positions"):
        profiles(msgspec.structs.replace(manifest, decoder=decoder), graph)
