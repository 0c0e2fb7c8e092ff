"""Opening and verifying bundles, whole and damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError, InputError, UsageError


def test_opens_and_verifies(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert [plan.name for plan in bundle.manifest.plans] == ["prunesid-16", "prunesid-32"]
    read = 0

    def count(_: str, size: int) -> None:
        nonlocal read
        read += size

    assert bundle.verify(count) == []
    assert read == sum(file.bytes for file in bundle.manifest.files.values())


def test_every_file_of_the_bundle_is_listed(tiny_bundle: Path) -> None:
    found = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert found - {"manifest.json"} == set(open_bundle(tiny_bundle).manifest.files)


def test_files_are_world_readable(tiny_bundle: Path) -> None:
    for path in tiny_bundle.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o644 if path.is_file() else 0o755)


def test_plans_by_name(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.plan("prunesid-32").keep == 32
    with pytest.raises(UsageError, match=r"several plans; name one of them .--plan.: prunesid-16, prunesid-32"):
        bundle.plan()
    with pytest.raises(UsageError, match="no plan 'prunesid-64'; it has prunesid-16, prunesid-32"):
        bundle.plan("prunesid-64")


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder; give the bundle"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"holds no manifest.json, so it is not a bundle"):
        open_bundle(tmp_path)


def test_a_changed_byte_is_found_by_verify(bundle_copy: Path) -> None:
    weights = bundle_copy / "onnx" / "weights" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert open_bundle(bundle_copy).verify() == [
        "onnx/weights/model.safetensors does not have the SHA-256 that the manifest states"
    ]


def test_a_shorter_file_is_found_at_once(bundle_copy: Path) -> None:
    path = bundle_copy / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"tokenizer.json has \d+ bytes, the manifest says \d+"):
        open_bundle(bundle_copy)


def test_a_missing_file_is_found_at_once(bundle_copy: Path) -> None:
    (bundle_copy / "onnx" / "decoder_0.modern.onnx").unlink()
    with pytest.raises(BundleError, match=r"decoder_0.modern.onnx is missing"):
        open_bundle(bundle_copy)


def test_a_manifest_that_is_no_file_is_not_waited_for(bundle_copy: Path) -> None:
    manifest = bundle_copy / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(BundleError, match=r"manifest\.json is not a plain file"):
        open_bundle(bundle_copy)
    manifest.unlink()
    manifest.symlink_to("../../blobs/gone")
    with pytest.raises(BundleError, match=r"links to a file that is not there; .*cp -rL"):
        open_bundle(bundle_copy)


def test_a_link_out_of_the_bundle_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    path = bundle_copy / "tokenizer.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(bundle_copy)


def test_what_is_not_a_plain_file_is_refused(bundle_copy: Path) -> None:
    """A folder has a size too, and reading a pipe would wait for ever."""
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    os.mkfifo(bundle_copy / "pipe")
    for name in ("onnx", "pipe"):
        entry = {"bytes": (bundle_copy / name).stat().st_size, "sha256": "0" * 64}
        changed = {**manifest, "files": {**manifest["files"], name: entry}}
        (bundle_copy / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=rf"{name} is not a plain file; build or copy the bundle again"):
            open_bundle(bundle_copy)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=20) | st.text(min_size=250, max_size=400), size=st.integers(0, 2**63 - 1))
@example(name="../outside", size=1)
@example(name="/etc/passwd", size=1)
@example(name="onnx/../../outside", size=1)
@example(name="a\nb", size=1)
@example(name="a\0b", size=1)
@example(name="\ud800", size=1)
def test_any_file_name_is_refused_in_one_line(bundle_copy: Path, name: str, size: int) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": size, "sha256": "0" * 64}
    (bundle_copy.parent / "outside").write_text("x")
    kept = (bundle_copy / "manifest.json").read_bytes()
    try:
        (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError) as caught:
            open_bundle(bundle_copy)
    finally:
        (bundle_copy / "manifest.json").write_bytes(kept)
    assert str(caught.value).encode()
    assert "\n" not in str(caught.value)
