"""The files of a proof: what damages it, and what it says then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtexport.bundle.proof import PROOF_NAME, command_for, read_proof
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import BundleError


def change(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> Bundle:
    path = bundle / "proof" / PROOF_NAME
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return open_bundle(bundle)


def test_no_proof(tiny_bundle: Path) -> None:
    assert read_proof(tiny_bundle, open_bundle(tiny_bundle).manifest) is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(schema_version=99), "has schema_version 99 and this vtexport reads 1; run `vtex"),
        (lambda p: p.pop("plans"), "is damaged: .*plans"),
        (lambda p: p["cases"][0].update(image=7), "is damaged: a case has image 7 and prompt 0"),
        (lambda p: p["plans"]["none"].update(answers=[]), "is damaged: none has not one answer a case"),
        (lambda p: p["files"].pop("inputs.npz"), "names 'inputs.npz' without a hash"),
        (lambda p: p["plans"]["none"].update(file="../manifest.json"), "names '../manifest.json' without a hash"),
        (lambda p: p["files"].update({"../manifest.json": p["files"]["inputs.npz"]}), "which is not there"),
        (lambda p: p["files"]["image-0.png"].update(sha256="0" * 64), "does not have the SHA-256 that proof.json"),
        (lambda p: p["files"]["image-0.png"].update(bytes=5), "bytes, proof.json says 5"),
        (lambda p: p.update(precision="float16"), "it is of a bundle in float16"),
        (lambda p: p.update(manifest_sha256="0" * 64), "is of another manifest than the bundle's"),
    ],
)  # fmt: skip
def test_damage(edit: Callable[[dict[str, Any]], object], message: str, proven_copy: Path) -> None:
    bundle = change(proven_copy, edit)
    with pytest.raises(BundleError, match=message) as caught:
        read_proof(bundle.folder, bundle.manifest)
    assert caught.value.exit_code == 4
    assert "vtexport prove" in str(caught.value)


def test_links_that_lead_out(proven_copy: Path, tmp_path: Path) -> None:
    image = proven_copy / "proof" / "image-0.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    bundle = open_bundle(proven_copy)
    with pytest.raises(BundleError, match=r"names 'image-0.png', which is not there"):
        read_proof(bundle.folder, bundle.manifest)


def test_a_missing_array_is_damage(proven_bundle: Path) -> None:
    found = read_proof(proven_bundle, open_bundle(proven_bundle).manifest)
    assert found is not None
    arrays = found.arrays("inputs.npz")
    assert arrays.get("nothing") is None
    with pytest.raises(BundleError, match="it has no array 'nothing'"):
        arrays["nothing"]


def test_a_bundles_verification_passes_over_it(proven_copy: Path) -> None:
    (proven_copy / "proof" / "image-0.png").write_bytes(b"")
    assert open_bundle(proven_copy).verify() == []


def test_the_command_is_for_a_shell(proven_bundle: Path) -> None:
    manifest = open_bundle(proven_bundle).manifest
    manifest.source.requested = "./my model"
    assert command_for(Path("a b"), manifest) == "vtexport prove 'a b' --checkpoint './my model'"
