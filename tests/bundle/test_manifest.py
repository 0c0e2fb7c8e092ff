"""The manifest: what it refuses, and that nothing in it can lead out of the bundle or crash the reader."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtexport.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from vtexport.bundle.manifest_json import decode, encode
from vtexport.bundle.references import is_inside
from vtexport.errors import BundleError


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> dict[str, Any]:
    return json.loads((tiny_bundle / MANIFEST_NAME).read_text())


def changed(manifest: dict[str, Any], path: list[Any], value: Any) -> bytes:
    """The manifest with one value replaced."""
    copy = json.loads(json.dumps(manifest))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(copy).encode()


def test_reads_back_what_it_wrote(tiny_bundle: Path) -> None:
    data = (tiny_bundle / MANIFEST_NAME).read_bytes()
    assert encode(decode(data, "manifest.json")) == data


def test_keys_are_sorted_and_readable(manifest: dict[str, Any], tiny_bundle: Path) -> None:
    text = (tiny_bundle / MANIFEST_NAME).read_text()
    assert list(manifest) == sorted(manifest)
    assert text.count("\n") > 50


def test_another_schema_says_what_to_do(manifest: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"schema_version 5, .*vtexport 0.1.0; this vtexport reads 4: .*--upgrade"):
        decode(changed(manifest, ["schema_version"], 5), "manifest.json")
    older = {**manifest, "schema_version": 3, "command": "vtexport build --model mini --keep 64"}
    with pytest.raises(BundleError, match="--replace, which was `vtexport build --model mini --keep 64`"):
        decode(json.dumps(older).encode(), "manifest.json")


def test_an_older_bundle_is_refused_by_what_every_schema_had() -> None:
    """As the first schemas were, of which a reader knows nothing else."""
    with pytest.raises(BundleError, match=r"has schema_version 1, written by another vtexport.*build the bundle again"):
        decode(b'{"schema_version": 1, "name": "mini", "tokens": 576}', "manifest.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["plans"], [], "plans"),
        (["plans", 0, "keep"], 0, "keep"),
        (["plans", 0, "keep"], "64", "keep"),
        (["plans", 0, "positions"], "circular", "positions"),
        (["plans", 0, "graphs", "prune"], ["nowhere"], "uses? the graph 'nowhere'"),
        (["plans", 0, "graphs", "prune"], [], "prune"),
        (["plans", 0, "graphs", "decoder"], [[]], "decoder"),
        (["plans", 1, "name"], "prunesid-16", "two plans of one name"),
        (["plans", 0, "segments"], [], "segments"),
        (["plans", 0, "segments", 0, "layers"], 2, "segments that do not fit its steps and layers"),
        (["plans", 0, "graphs", "decoder"], [], "decoder"),
        (["plans", 0, "graphs", "decoder"], [["decoder_0.modern"], ["decoder_0.modern"]], "2 decoder graphs"),
        (["plans", 0, "graphs", "prune_llm"], [["prunesid-16.prune"]], "1 between them"),
        (
            ["plans", 0, "steps"],
            [{"layer": 1, "tokens": 16, "keep": 4, "op": "VtxAttentionTopK", "positions": "original"}],
            "segments that do not fit its steps",
        ),
        (["decoder", "num_hidden_layers"], 99, "do not fit its steps and layers"),
        (["text", "embedding", "file"], "other.safetensors", "does not list it"),
        (["text", "embedding", "offset"], 10**9, "ends behind"),
        (["text", "embedding", "shape"], [2**62, 2**62], "ends behind"),
        (["text", "embedding", "shape"], [4], "embedding of shape"),
        (["decoder", "hidden_size"], 2**40, "vocabulary and width do not have"),
        (["vision", "arrangements"], [], "arrangements"),
        (["vision", "arrangements", 0, "views"], [], "views"),
        (["vision", "resize"], {"rule": "squint"}, "squint"),
        (["graphs", "decoder_0.modern", "arrangement"], "2x3", "for the arrangement '2x3', which it does not describe"),
        (["position_ids"], {"kind": "mrope", "axes": 1}, "of kind 'mrope' with 1 axes, not 3"),
        (["weights"], {"attic": []}, "attic"),
        (["image", "mean"], [0.1, 0.2], "mean"),
        (["files", "../outside"], {"bytes": 1, "sha256": "0" * 64}, "not a plain path"),
        (["files", "tokenizer.json", "sha256"], "abc", "sha256"),
    ],
)
def test_refuses(manifest: dict[str, Any], path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        decode(changed(manifest, path, value), "manifest.json")


def test_refuses_a_missing_field(manifest: dict[str, Any]) -> None:
    for field in manifest.keys() - {"adaptive_plans", "generation", "images_per_prompt", "self_check", "notes"}:
        rest = {key: value for key, value in manifest.items() if key != field}
        with pytest.raises(BundleError, match=field):
            decode(json.dumps(rest).encode(), "manifest.json")


def test_a_manifest_without_adaptive_plans_and_reports_is_read(manifest: dict[str, Any]) -> None:
    del manifest["adaptive_plans"], manifest["plans"][0]["reports"]
    read = decode(json.dumps(manifest).encode(), "manifest.json")
    assert (read.adaptive_plans, read.plans[0].reports) == ([], {})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": "1"}', b"[" * 100_000])
def test_refuses_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a bundle manifest"):
        decode(data, "manifest.json")


def test_refuses_a_huge_file() -> None:
    with pytest.raises(BundleError, match="more than a manifest can have"):
        decode(b" " * (MAX_MANIFEST_BYTES + 1), "manifest.json")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", "a\\b", "a\0b", "a\nb", "a/", ".."]
)
def test_paths_that_could_leave(path: str) -> None:
    assert not is_inside(path)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, child in value.items() for leaf in leaves(child, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, child in enumerate(value) for leaf in leaves(child, (*path, index))]
    return [path]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_value_is_read_or_refused(manifest: dict[str, Any], data: st.DataObject) -> None:
    """Whatever stands in one place: a manifest whose paths stay inside, or a BundleError; never another exception."""
    path = data.draw(st.sampled_from(leaves(manifest)))
    value = data.draw(anything | st.sampled_from(["../../etc/passwd", "/etc/passwd", 2**63, -1, 10**400]))
    try:
        read = decode(changed(manifest, list(path), value), "manifest.json")
    except BundleError:
        return
    assert all(is_inside(name) for name in read.files)
    assert all(graph.file in read.files for graph in read.graphs.values())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 20_000), junk=st.binary(max_size=20))
def test_any_damaged_bytes_are_read_or_refused(tiny_bundle: Path, cut: int, junk: bytes) -> None:
    whole = (tiny_bundle / MANIFEST_NAME).read_bytes()
    at = cut % len(whole)
    with contextlib.suppress(BundleError):
        decode(whole[:at] + junk + whole[at + len(junk) :], "manifest.json")
