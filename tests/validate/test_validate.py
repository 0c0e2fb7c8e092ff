"""A replay finds what it has to: one sign, another graph, tokenizer or template; and passes what is as it should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.proof import PROOF_NAME
from vtexport.bundle.reader import open_bundle
from vtexport.checkpoint.safetensors_index import TensorEntry, read_header
from vtexport.errors import BundleError
from vtexport.validate import NoProofError, Report, validate

pytestmark = pytest.mark.long

PLAN = "prunesid-16"
LAYERS_READ = 3  # of the vision tower's four: features are those of the last layer but one


def failed(report: Report) -> set[str]:
    return {check.what for _, check in report.failed}


def restate(bundle: Path) -> None:
    """Has manifest and proof agree with the files, as if the build had written them so."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, file in manifest["files"].items():
        file |= {"bytes": (bundle / name).stat().st_size, "sha256": hash_file(bundle / name)}
    path.write_text(json.dumps(manifest))
    proof = json.loads((bundle / "proof" / PROOF_NAME).read_text())
    proof["manifest_sha256"] = hash_file(path)
    (bundle / "proof" / PROOF_NAME).write_text(json.dumps(proof))


def test_everything_passes(proven_bundle: Path) -> None:
    report = validate(proven_bundle, threads=1)
    assert {check.verdict for _, check in report.checks} == {"pass"}
    assert [plan.plan for plan in report.plans] == ["none", PLAN, "cdpruner-16", "nuwa-16"]
    assert [(check.what, check.case) for check in report.inputs] == [
        ("pixels", "image 1"),
        ("pixels", "image 2"),
        ("token ids", "prompt 1"),
        ("token ids", "prompt 2"),
    ]
    by_plan = {plan.plan: [check.what for check in plan.checks if check.case == "case 1"] for plan in report.plans}
    assert by_plan[PLAN] == [
        *("features", "signal scores", "kept", "kept", "rows", "logits", "last logits", "tokens"),
    ]
    assert by_plan["nuwa-16"].count("kept, layer 2") == 1
    # Halves of the bounds would do, so they are no luck
    for _, check in report.checks:
        if check.what in {"features", "rows", "logits", "last logits"}:
            assert check.measured is not None
            assert check.bound is not None
            assert check.measured < 0.9 * check.bound < 1e-4


@pytest.mark.parametrize("dialect", ["modern", "classic"])
def test_both_dialects_pass(proven_bundle: Path, dialect: str) -> None:
    report = validate(proven_bundle, plans=[PLAN], dialect=dialect, threads=1)
    assert not report.failed
    assert all(dialect in name or "prune" in name for name in report.plans[0].graphs)


def test_without_the_native_library(proven_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTEXPORT_NATIVE", "0")
    report = validate(proven_bundle, plans=[PLAN], threads=1)
    assert not report.failed
    assert report.pruning_ops.startswith("function bodies")


def weights(bundle: Path, part: str) -> tuple[Path, dict[str, TensorEntry]]:
    """A part's matrices that every answer goes through."""
    (file,) = (bundle / "onnx" / "weights").glob("*.safetensors")
    unread = f"vision_model.encoder.layers.{LAYERS_READ}.", f"encoder.layers.{LAYERS_READ}.", "position_embedding"
    named = {"vision": "vision_tower", "connector": "multi_modal_projector", "decoder": "language_model"}[part]
    found = {
        name: entry
        for name, entry in read_header(file).items()
        if named in name and len(entry.shape) >= 2 and "embed_tokens" not in name
        if not (part == "vision" and any(each in name for each in unread))
    }
    assert len(found) >= 2
    return file, found


def sign_flips(bundle: Path, part: str, count: int, seed: int) -> Any:
    """Flips one sign at a time of a weight of its tensor's usual magnitude, and yields where."""
    file, entries = weights(bundle, part)
    random = np.random.default_rng(seed)
    for _ in range(count):
        name = sorted(entries)[random.integers(len(entries))]
        entry = entries[name]
        data = np.memmap(file, np.float32, "r+", offset=entry.offset, shape=tuple(entry.shape)).reshape(-1)
        size = np.abs(data) / np.sqrt(np.mean(np.square(data)))
        place = int(random.choice(np.flatnonzero((size > 0.5) & (size < 2))))
        data[place] = -data[place]
        data.flush()
        yield f"{name}[{place}]"
        data[place] = -data[place]
        data.flush()


@pytest.mark.parametrize(
    ("part", "first"), [("vision", "features"), ("connector", "rows"), ("decoder", "logits")], ids=lambda each: each
)
def test_one_sign_is_found(part: str, first: str, proven_copy: Path) -> None:
    """In a weight file of which nobody takes the hash."""
    for place in sign_flips(proven_copy, part, 4, seed=20260613):
        found = failed(validate(proven_copy, plans=[PLAN], threads=1))
        assert {first, "last logits"} & found, place
        if part != "vision":
            assert "features" not in found, place
    assert not validate(proven_copy, plans=[PLAN], threads=1).failed


def test_another_budgets_graph_is_found(proven_copy: Path, tiny_bundle: Path) -> None:
    for graph in (tiny_bundle / "onnx").glob("prunesid-32.prune*"):
        shutil.copyfile(graph, proven_copy / "onnx" / graph.name.replace("-32", "-16"))
    restate(proven_copy)
    report = validate(proven_copy, plans=[PLAN], threads=1)
    assert {(check.stage, check.what) for _, check in report.failed} >= {("op", "kept"), ("pipeline", "kept")}


@pytest.mark.parametrize("other", ["cdpruner-16", "none"])
def test_another_methods_graph_is_found(other: str, proven_copy: Path) -> None:
    """One that takes an input which this plan has not stops the replay, and that is a failure, too."""
    for graph in (proven_copy / "onnx").glob(f"{other}.prune*"):
        target = proven_copy / "onnx" / graph.name.replace(other, PLAN)
        shutil.copyfile(graph, target)
        shutil.copyfile(graph, target.with_name(f"{PLAN}.prune.native.onnx"))
    restate(proven_copy)
    assert {"kept", "replay"} & failed(validate(proven_copy, plans=[PLAN], threads=1))
    assert not validate(proven_copy, plans=["nuwa-16"], threads=1).failed


def test_another_tokenizer_is_found(proven_copy: Path) -> None:
    path = proven_copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = "e", "r"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(tokenizer))
    restate(proven_copy)
    report = validate(proven_copy, plans=["none"], threads=1)
    assert "token ids" in failed(report)
    assert "PyTorch was given" in report.failed[0][1].note


def test_another_template_is_found(proven_copy: Path) -> None:
    path = proven_copy / "chat_template.jinja"
    path.write_text(path.read_text() + ".")
    restate(proven_copy)
    assert {"token ids", "logits"} <= failed(validate(proven_copy, plans=["none"], threads=1))


def test_other_pixels_are_told_and_the_rest_goes_on(proven_copy: Path) -> None:
    """As on a device whose Pillow resizes otherwise: the graphs are compared on PyTorch's own pixels."""
    path = proven_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["image"]["resample"] = "nearest"
    path.write_text(json.dumps(manifest))
    restate(proven_copy)
    report = validate(proven_copy, plans=["none"], threads=1)
    assert failed(report) == {"pixels"}
    assert all(check.measured and check.measured > 10 for check in report.inputs if check.what == "pixels")


def test_a_level_of_difference_is_no_failure(proven_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from vtexport.runtime.stages import Stages

    real = Stages.preprocess

    def off_by_one(self: Stages, image: Any) -> Any:
        made = real(self, image)
        settings = self._manifest.image
        moved = made.pixel_values.copy()
        moved[0, 1, 5, 7] += settings.rescale / settings.std[1]
        return dataclasses.replace(made, pixel_values=moved)

    monkeypatch.setattr(Stages, "preprocess", off_by_one)
    report = validate(proven_bundle, plans=[PLAN], threads=1)
    assert [check.verdict for check in report.inputs] == ["differs", "differs", "pass", "pass"]
    assert {check.verdict for check in report.plans[0].checks} == {"pass"}


def test_no_proof(tiny_bundle: Path, proven_copy: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(NoProofError, match=rf"has no proof to validate by.*`vtexport prove {tiny_bundle} --checkpoint"):
        validate(tiny_bundle)
    from vtexport.build import build

    build(str(tiny_checkpoint), proven_copy, method="uniform", keep=16)
    with pytest.raises(NoProofError, match=r"the plan uniform-16 of .* has no proof .*run `vtexport prove"):
        validate(proven_copy, plans=["uniform-16"])
    report = validate(proven_copy, threads=1)
    assert report.without_proof == {"uniform-16": "no proof was made of it"}
    assert not report.failed


@pytest.mark.parametrize("name", ["image-0.png", "inputs.npz", "prunesid-16.*.npz"])
def test_a_damaged_proof(name: str, proven_copy: Path) -> None:
    (path,) = (proven_copy / "proof").glob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"is damaged: it does not have the SHA-256 that proof.json states"):
        validate(proven_copy, plans=[PLAN])


def test_a_proof_of_another_manifest(proven_copy: Path) -> None:
    path = proven_copy / "manifest.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(BundleError, match=r"is of another manifest than the bundle's; run `vtexport prove"):
        validate(proven_copy)
    assert open_bundle(proven_copy).manifest


def test_half_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """PyTorch in float32 beside graphs in float16: bounds follow from rounding at float16."""
    from vtexport.build import build
    from vtexport.proof import prove

    folder = tmp_path / "half"
    for method in ("prunesid", "fastv"):
        build(str(tiny_checkpoint), folder, method=method, keep=32 if method == "fastv" else 16, precision="fp16")
    prove(folder, str(tiny_checkpoint))
    report = validate(folder, threads=1)
    assert not report.failed
    bounds = [check.bound for _, check in report.checks if check.what in {"features", "rows", "logits"}]
    assert all(bound is not None and 1e-3 <= bound < 0.1 for bound in bounds)
