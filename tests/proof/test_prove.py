"""Proofs as they are made: what is recorded, of which checkpoint, and what becomes of earlier ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_parts import config_of
from PIL import Image
from tiny_llava import make_config, make_model, save_model

from vtexport.build import BuildProgress, build
from vtexport.bundle.proof import FoundProof, read_proof
from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError, MissingDependencyError, UsageError
from vtexport.proof import prove
from vtexport.proof.pictures import pictures
from vtexport.pruning import select
from vtexport.validate import validate

pytestmark = pytest.mark.long


def found(bundle: Path) -> FoundProof:
    proof = read_proof(bundle, open_bundle(bundle).manifest)
    assert proof is not None
    return proof


@pytest.fixture(scope="module")
def proof(proven_bundle: Path) -> FoundProof:
    return found(proven_bundle)


@pytest.fixture(scope="module")
def untouched(tiny_checkpoint: Path, proof: FoundProof) -> dict[str, Any]:
    """The first case by transformers alone, without a line of ours."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_checkpoint, local_files_only=True)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": proof.proof.prompts[0]}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = Image.open(proof.folder / proof.proof.images[0].file)
    given = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        tower = model.model.vision_tower(given["pixel_values"], output_hidden_states=True, output_attentions=True)
        out = model.generate(
            **given, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return {"given": given, "features": tower.hidden_states[-2][0], "out": out}


def test_it_is_what_transformers_answers(proof: FoundProof, untouched: dict[str, Any]) -> None:
    """Of the plan without pruning: pixels, ids, features, logits and tokens."""
    arrays, inputs = proof.arrays(proof.proof.plans["none"].file), proof.arrays("inputs.npz")
    pixels = untouched["given"]["pixel_values"].numpy()
    assert proof.proof.images[0].pixels_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    ids = untouched["given"]["input_ids"][0].tolist()
    before, after = inputs["prompt.0.before"].tolist(), inputs["prompt.0.after"].tolist()
    assert ids == [*before, *[4] * 64, *after]
    features = untouched["features"].numpy()
    assert proof.proof.plans["none"].strides["features"] == 1
    np.testing.assert_allclose(arrays["0.features.rows"], features, rtol=0, atol=2e-6 * np.abs(features).max())
    np.testing.assert_allclose(arrays["0.features.mean"], features.mean(0), rtol=0, atol=2e-6)
    first, last = (untouched["out"].logits[at][0].numpy() for at in (0, 31))
    np.testing.assert_allclose(arrays["0.logits.all"], first, rtol=0, atol=1e-5)
    np.testing.assert_allclose(arrays["0.last logits.all"], last, rtol=0, atol=1e-5)
    assert arrays["0.tokens"].tolist() == untouched["out"].sequences[0, len(ids) :].tolist()
    assert (arrays["0.gaps"] > 0).all()


def test_kept_indices_are_the_references(proof: FoundProof) -> None:
    arrays = proof.arrays(proof.proof.plans["prunesid-16"].file)
    features, scores = arrays["0.features.rows"][None], arrays["0.signal scores.rows"][None, :, 0]
    expected = select("prunesid", features, scores, keep=16)
    assert arrays["0.kept.visual"].tolist() == expected.keep_indices[0].tolist()
    answer = proof.proof.plans["prunesid-16"].answers[0]
    assert answer.margins["nms_margin"] == pytest.approx(float(expected.details["nms_margin"][0]), rel=1e-3)


def test_parts(proof: FoundProof) -> None:
    stored = proof.proof
    assert [case.image for case in stored.cases] == [case.prompt for case in stored.cases] == [0, 1]
    assert set(stored.plans) == {"none", "prunesid-16", "cdpruner-16", "nuwa-16"}
    assert stored.without_proof == {}
    for name, plan in stored.plans.items():
        assert stored.files[plan.file].bytes < 2_000_000
        assert all((answer.margins == {}) == (answer.no_margin is not None) for answer in plan.answers), name
        arrays = proof.arrays(plan.file)
        assert [len(arrays[f"{case}.tokens"]) for case in (0, 1)] == [32, 32]
        for noise in plan.noise.values():
            assert 0 < noise.rms <= noise.largest < 1e-4
    assert stored.plans["none"].answers[0].no_margin == "every token is kept, so none is cut"
    steps = [name for name in stored.plans["nuwa-16"].answers[0].margins if name.startswith("layer ")]
    assert len(steps) == 1
    with Image.open(proof.folder / "image-1.png") as image:
        assert image.size == (320, 400)


def test_another_checkpoint_is_refused(proven_copy: Path, tmp_path: Path) -> None:
    other = save_model(make_model(make_config(), seed=1), tmp_path / "other")
    before = (proven_copy / "proof" / "proof.json").read_bytes()
    with pytest.raises(UsageError, match=r"is not the checkpoint that .* was made of .*model.safetensors differs"):
        prove(proven_copy, str(other))
    (other / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(UsageError, match=r"generation_config.json differs"):
        prove(proven_copy, str(other))
    assert (proven_copy / "proof" / "proof.json").read_bytes() == before


def test_the_users_own_images_and_prompts(proven_copy: Path, tiny_checkpoint: Path, photo: Path) -> None:
    made = prove(proven_copy, str(tiny_checkpoint), images=[photo], prompts=["What is it?", "And why?"])
    assert [(case.image, case.prompt) for case in made.cases] == [(0, 0), (0, 1)]
    assert made.images[0].origin == photo.name
    with Image.open(photo) as given, Image.open(proven_copy / "proof" / "image-0.png") as stored:
        assert np.array_equal(np.asarray(given.convert("RGB")), np.asarray(stored))
    # Plans asked anew take these, and one alone cannot take others
    again = prove(proven_copy, str(tiny_checkpoint), plans=["none"])
    assert again.prompts == made.prompts
    assert again.plans["prunesid-16"] == made.plans["prunesid-16"]
    with pytest.raises(UsageError, match=r"are of other images or prompts; leave out --plan to make all anew"):
        prove(proven_copy, str(tiny_checkpoint), plans=["none"], prompts=["Who?"])


def test_adding_a_plan_keeps_the_proofs_of_others(proven_copy: Path, tiny_checkpoint: Path) -> None:
    before = found(proven_copy).proof
    path = proven_copy / "proof" / "proof.json"
    changed = json.loads(path.read_text())
    changed["plans"]["cdpruner-16"]["plan_sha256"] = "0" * 64  # as of a plan that was another
    path.write_text(json.dumps(changed))
    notes: list[str] = []
    report = BuildProgress(note=notes.append)
    bundle = build(str(tiny_checkpoint), proven_copy, method="uniform", keep=16, report=report)
    after = found(bundle.folder).proof
    assert after.plans == {name: each for name, each in before.plans.items() if name != "cdpruner-16"}
    assert after.manifest_sha256 != before.manifest_sha256
    assert before.plans["cdpruner-16"].file not in {path.name for path in (proven_copy / "proof").iterdir()}
    assert any("cdpruner-16 has changed, so its proof goes" in note for note in notes)
    assert not list(proven_copy.glob(".*"))


def test_a_bundle_in_the_checkpoints_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    build(str(folder), folder, method="none", link_weights=True)
    prove(folder, str(folder))
    build(str(folder), folder, method="uniform", keep=16, link_weights=True)
    assert set(found(folder).proof.plans) == {"none"}
    build(str(folder), folder, method="none", link_weights=True, replace=True)
    assert not (folder / "proof").exists()


def test_a_method_that_eager_pruning_does_not_take(
    proven_copy: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtexport.proof import answer

    real = answer.apply

    def refusing(model: Any, *, method: str, **parameters: Any) -> Any:
        if method == "cdpruner":
            raise UsageError("cdpruner cannot be applied to it")
        return real(model, method=method, **parameters)

    monkeypatch.setattr(answer, "apply", refusing)
    made = prove(proven_copy, str(tiny_checkpoint), plans=["cdpruner-16", "none"])
    assert made.without_proof == {"cdpruner-16": "cdpruner cannot be applied to it"}
    assert set(made.plans) == {"none", "prunesid-16", "nuwa-16"}


def test_without_pytorch(proven_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtexport.proof.reference.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"PyTorch is not installed; run pip install 'vtexport\[export,py"):
        prove(proven_copy)


def test_a_damaged_proof_is_replaced_whole_or_not_at_all(proven_copy: Path, tiny_checkpoint: Path) -> None:
    (proven_copy / "proof" / "image-0.png").write_bytes(b"")
    with pytest.raises(BundleError, match=r"image-0.png is damaged: it has 0 bytes"):
        prove(proven_copy, str(tiny_checkpoint), plans=["none"])
    assert len(prove(proven_copy, str(tiny_checkpoint)).plans) == 4


def test_pictures_are_the_same_each_time() -> None:
    one, other = pictures(), pictures()
    assert [image.tobytes() for image in one.values()] == [image.tobytes() for image in other.values()]
    scene, noise = (np.asarray(image, np.float64) for image in one.values())
    assert len(np.unique(scene.reshape(-1, 3), axis=0)) < len(np.unique(noise.reshape(-1, 3), axis=0)) / 10


@pytest.mark.parametrize("name", ["siglip and qwen2 with late windows", "clip and mistral"])
def test_other_towers_and_decoders(name: str, tmp_path: Path) -> None:
    folder = save_model(make_model(config_of(name)), tmp_path / "checkpoint")
    bundle = build(str(folder), tmp_path / "bundle", keep=16).folder
    assert prove(bundle, str(folder)).without_proof == {}
    assert {check.verdict for _, check in validate(bundle, threads=1).checks} == {"pass"}
