"""The pipeline's behaviour: stages, streaming, sampling, limits, errors. Parity with PyTorch is in test_parity.py."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtexport.bundle import manifest as schema
from vtexport.bundle.manifest_json import decode, encode
from vtexport.bundle.views import Tiles
from vtexport.cli.main import main
from vtexport.errors import BundleError, InputError, MissingDependencyError, UsageError
from vtexport.runtime.pipeline import AnswerStream, Pipeline

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.open(tiny_bundle, "prunesid-16", threads=1)


def test_one_frame_serves_several_questions(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    visual = pipeline.encode(noisy_image)
    for question in (QUESTION, "And what is that?"):
        alone = pipeline.generate(noisy_image, question, max_new_tokens=8)
        reused = pipeline.generate(visual, question, max_new_tokens=8)
        assert reused.token_ids == alone.token_ids
        assert reused.timings_ms["vision"] == visual.timings_ms["vision"]
        assert reused.timings_ms["total"] < reused.timings_ms["vision"] + reused.timings_ms["total"]


def test_visual_tokens_say_what_they_are(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    visual = pipeline.encode(noisy_image)
    assert visual.embeddings.shape == (1, 16, 72)
    assert visual.keep_indices[0] == -1
    assert sorted(set(visual.keep_indices[1:].tolist())) == sorted(visual.keep_indices[1:].tolist())
    assert all(0 <= index < 64 for index in visual.keep_indices[1:])
    assert visual.positions.tolist() == [list(range(16))]
    assert (visual.position_span, visual.grid, visual.image_size) == (16, (8, 8), (201, 150))
    assert set(visual.timings_ms) == {"preprocess", "vision", "prune"}


def test_answer_counts(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    answer = pipeline.generate(noisy_image, QUESTION, max_new_tokens=5)
    prompt = pipeline._prompts.read(QUESTION)
    assert answer.prompt_tokens == len(prompt.before) + 16 + len(prompt.after)
    assert (answer.visual_tokens, len(answer.keep_indices), answer.plan) == (16, 16, "prunesid-16")
    assert len(answer.token_ids) == 5
    assert answer.finish_reason == "length"
    assert list(answer.timings_ms) == ["preprocess", "vision", "prune", "prefill", "first_token", "decode", "total"]
    stages = [answer.timings_ms[name] for name in ("preprocess", "vision", "prune", "prefill")]
    assert sum(stages) <= answer.timings_ms["first_token"] <= answer.timings_ms["total"]


@pytest.mark.parametrize("kind", ["path", "pil", "array"])
def test_image_kinds_agree(pipeline: Pipeline, noisy_image: np.ndarray, tmp_path: Path, kind: str) -> None:
    image: Any = Image.fromarray(noisy_image)
    image.save(tmp_path / "a.png")
    given = {"path": str(tmp_path / "a.png"), "pil": image, "array": noisy_image}[kind]
    np.testing.assert_array_equal(pipeline.encode(given).embeddings, pipeline.encode(noisy_image).embeddings)


@pytest.mark.parametrize("key", ["path", "url", "image", "base64", "image_url"])
def test_images_inside_messages(pipeline: Pipeline, noisy_image: np.ndarray, tmp_path: Path, key: str) -> None:
    """They are what the same image given next to the question is."""
    path = tmp_path / "a.png"
    Image.fromarray(noisy_image).save(path)
    written = base64.b64encode(path.read_bytes()).decode()
    part: dict[str, Any] = {
        "path": {"type": "image", "path": path},
        "url": {"type": "image", "url": path.as_uri()},
        "image": {"type": "image", "image": noisy_image},
        "base64": {"type": "image", "base64": written},
        "image_url": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{written}"}},
    }[key]
    messages = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
    expected = pipeline.generate(noisy_image, QUESTION, max_new_tokens=6)
    answer = pipeline.generate(prompt=messages, max_new_tokens=6)
    assert answer.token_ids == expected.token_ids
    assert answer.warnings == []
    frame = pipeline.encode(None, messages)
    np.testing.assert_array_equal(frame.embeddings, pipeline.encode(noisy_image).embeddings)
    assert pipeline.generate(frame, messages, max_new_tokens=6).token_ids == expected.token_ids


def test_an_image_beside_messages_that_name_another(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    """It comes first, as in transformers, and the answer says so."""
    content = [{"type": "image", "url": "https://example.org/a.jpg"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    answer = pipeline.generate(noisy_image, messages, max_new_tokens=6)
    assert answer.token_ids == pipeline.generate(noisy_image, QUESTION, max_new_tokens=6).token_ids
    assert len(answer.warnings) == 1
    assert "not the image that the conversation names ('https://example.org/a.jpg')" in answer.warnings[0]
    with pytest.raises(UsageError, match="vtexport fetches nothing; download the image first"):
        pipeline.generate(None, messages)


@pytest.mark.parametrize("prompt", [QUESTION, [{"role": "user", "content": [{"type": "image"}]}]])
def test_no_image_anywhere(pipeline: Pipeline, prompt: Any) -> None:
    with pytest.raises(UsageError, match="there is no image; give one, or a conversation whose image part names it"):
        pipeline.generate(None, prompt)
    with pytest.raises(UsageError, match="there is no image"):
        pipeline.encode()


def test_streaming_by_function_and_by_iterator(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    whole = pipeline.generate(noisy_image, QUESTION, max_new_tokens=12)
    pieces: list[str] = []
    called = pipeline.generate(noisy_image, QUESTION, max_new_tokens=12, stream=pieces.append)
    assert "".join(pieces) == called.text == whole.text
    stream = pipeline.stream(noisy_image, QUESTION, max_new_tokens=12)
    assert isinstance(stream, AnswerStream)
    assert stream.answer is None
    assert "".join(stream) == whole.text
    assert stream.answer is not None
    assert stream.answer.token_ids == whole.token_ids


def test_pieces_come_before_the_answer_is_finished(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    stream = pipeline.stream(noisy_image, QUESTION, max_new_tokens=200)
    assert next(iter(stream))
    assert stream.answer is None


def test_stops_at_the_end_token(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    greedy = pipeline.generate(noisy_image, QUESTION, max_new_tokens=12)
    end = greedy.token_ids[5]
    first = greedy.token_ids.index(end)
    text = pipeline.bundle.manifest.text
    before = text.eos_token_ids
    text.eos_token_ids = [end]
    try:
        answer = pipeline.generate(noisy_image, QUESTION, max_new_tokens=12)
    finally:
        text.eos_token_ids = before
    assert answer.token_ids == greedy.token_ids[: first + 1]
    assert answer.finish_reason == "eos"
    # As transformers decodes it: without special tokens, and with an end token that is none of those
    assert answer.text == pipeline._prompts.tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_sampling_is_repeatable_and_varied(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    def sample(seed: int) -> list[int]:
        return pipeline.generate(visual, QUESTION, max_new_tokens=12, temperature=1.0, top_p=0.9, seed=seed).token_ids

    visual = pipeline.encode(noisy_image)
    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"max_new_tokens": 5000}, r"5000 new tokens are asked for, more than the model's 256 positions"),
    ],
)
def test_wrong_values(pipeline: Pipeline, noisy_image: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.generate(noisy_image, QUESTION, **options)


def test_the_whole_context_can_be_used(pipeline: Pipeline, noisy_image: np.ndarray) -> None:
    visual = pipeline.encode(noisy_image)
    used = pipeline.generate(visual, QUESTION, max_new_tokens=1).prompt_tokens
    answer = pipeline.generate(visual, QUESTION, max_new_tokens=256 - used)
    assert len(answer.token_ids) == 256 - used or answer.finish_reason == "eos"
    with pytest.raises(UsageError, match="positions"):
        pipeline.generate(visual, QUESTION, max_new_tokens=257 - used)


def test_tokens_of_another_plan_are_refused(pipeline: Pipeline, tiny_bundle: Path, noisy_image: np.ndarray) -> None:
    visual = Pipeline.open(tiny_bundle, "prunesid-32").encode(noisy_image)
    with pytest.raises(UsageError, match="made with plan prunesid-32, this pipeline runs prunesid-16"):
        pipeline.generate(visual, QUESTION)


def test_open_refuses(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Pipeline.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="several plans"):
        Pipeline.open(tiny_bundle)
    for threads in (0, 100_000):
        with pytest.raises(UsageError, match=f"threads is {threads}; give a whole number from 1 to 1024"):
            Pipeline.open(tiny_bundle, "prunesid-16", threads=threads)
    with pytest.raises(UsageError, match="dialect 'modem' is not known; choose one of modern, classic"):
        Pipeline.open(tiny_bundle, "prunesid-16", dialect="modem")
    with pytest.raises(UsageError, match="device 'tpu' is not known; choose one of cpu, cuda"):
        Pipeline.open(tiny_bundle, "prunesid-16", device="tpu")


@pytest.mark.parametrize(
    ("section", "field", "name"),
    [
        ("image", "crop_height", "pixel_values"),
        ("image", "crop_width", "pixel_values"),
        ("decoder", "num_key_value_heads", "past_key_values.0.key"),
        ("decoder", "head_dim", "past_key_values.0.key"),
    ],
)
def test_sizes_that_the_graphs_do_not_have(bundle_copy: Path, section: str, field: str, name: str) -> None:
    """Arrays are made of these sizes: a manifest that lies must not decide how large."""
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[section][field] = 2**40
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=rf"takes {name} of shape .* the bundle's manifest says .*1099511627776"):
        Pipeline.open(bundle_copy, "prunesid-16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_shortest": 2**40}, "resized to more than"),
        ({"crop_height": None, "crop_width": None}, "sizes of their own.*takes one size"),
        ({"crop_height": None}, "does not fit together"),
        (
            {"crop_height": None, "crop_width": None, "resize_shortest": None, "resize_height": 2, "resize_width": 3},
            r"takes pixel_values of shape .* the bundle's manifest says .*\[3, 2, 3\]",
        ),
        (
            {"crop_height": None, "crop_width": None, "pad_to_square": [0, 0, 0], "resize_shortest": 9},
            r"takes pixel_values of shape .* the bundle's manifest says .*\[3, 9, 9\]",
        ),
    ],
)
def test_image_settings_that_the_graph_cannot_have(bundle_copy: Path, changes: dict[str, Any], message: str) -> None:
    change_image_settings(bundle_copy, **changes)
    with pytest.raises(BundleError, match=message):
        Pipeline.open(bundle_copy, "prunesid-16")


def change_image_settings(bundle: Path, **changes: Any) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["image"].update(changes)
    path.write_text(json.dumps(manifest))


def test_images_with_a_border(bundle_copy: Path, noisy_image: np.ndarray, tmp_path: Path) -> None:
    """A model whose images are made square sees the same as one that gets them square, and the picture shows it."""
    colour = (122, 116, 104)
    square = np.full((201, 201, 3), colour, np.uint8)
    square[25:175] = noisy_image
    plain = Pipeline.open(bundle_copy, "prunesid-16", threads=1).encode(square)
    change_image_settings(bundle_copy, pad_to_square=list(colour), crop_height=None, crop_width=None)
    bordered = Pipeline.open(bundle_copy, "prunesid-16", threads=1).encode(noisy_image)
    np.testing.assert_array_equal(bordered.embeddings, plain.embeddings)
    crop = bordered.crop
    assert (crop.left, crop.top, crop.width, crop.height) == pytest.approx((0, -25, 201, 201))
    assert bordered.image_size == (201, 150)

    Image.fromarray(noisy_image).save(tmp_path / "a.png")
    picture = tmp_path / "kept.png"
    given = ["show", str(bundle_copy), "--plan", "prunesid-16", "--image", str(tmp_path / "a.png"), "-o", str(picture)]
    assert main(given) == 0
    shown = np.asarray(Image.open(picture))
    assert shown.shape[0] == shown.shape[1]
    borders = {tuple(np.rint(np.array(colour) * brightness).astype(int)) for brightness in (1.0, 0.42)}
    assert tuple(shown[10, 10]) in borders  # the first row of patches is 84 pixels high and partly border
    assert tuple(shown[-10, -10]) in borders


def test_what_was_passed_over_in_a_file_is_said(
    pipeline: Pipeline, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg", exif=exif)
    said = f"{tmp_path / 'a.jpg'} has the orientation '9', which is none of 1 to 8 and is not applied"
    assert pipeline.encode(tmp_path / "a.jpg").warnings == [said]
    given = ["--plan", "prunesid-16", "--image", str(tmp_path / "a.jpg")]
    assert main(["run", str(tiny_bundle), *given, "--prompt", QUESTION, "--max-new-tokens", "1"]) == 0
    assert f"warning: {said}\n" in capsys.readouterr().err
    assert main(["show", str(tiny_bundle), *given, "-o", str(tmp_path / "kept.png")]) == 0
    assert f"warning: {said}\n" in capsys.readouterr().err


def test_cuda_without_its_provider_is_refused(tiny_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(MissingDependencyError, match=r"no CUDAExecutionProvider.*--device cpu"):
        Pipeline.open(tiny_bundle, "prunesid-16", device="cuda")


def test_without_onnxruntime(tiny_bundle: Path, blocked_import: Any) -> None:
    blocked_import("onnxruntime")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vtexport\[cpu\]'"):
        Pipeline.open(tiny_bundle, "prunesid-16")


def test_a_damaged_graph_is_named(bundle_copy: Path) -> None:
    graph = bundle_copy / "onnx" / "decoder_0.modern.onnx"
    data = graph.read_bytes()
    graph.write_bytes(b"\0" * len(data))
    with pytest.raises(BundleError, match=r"cannot load .*decoder_0.modern.onnx.*; `vtexport inspect --verify` says"):
        Pipeline.open(bundle_copy, "prunesid-16")


def test_a_bundle_without_graphs_for_this_runtime(bundle_copy: Path) -> None:
    path = bundle_copy / schema.MANIFEST_NAME
    manifest = decode(path.read_bytes(), "manifest")
    for plan in manifest.plans:
        plan.graphs.prune.remove(f"{plan.name}.prune")  # so that the graph for native ops alone is left
    path.write_bytes(encode(manifest))
    with pytest.raises(MissingDependencyError, match=r"runs no graph for prunesid-16\.prune\.native .* VtxPruneSID"):
        Pipeline.open(bundle_copy, "prunesid-16")


def test_a_bundle_of_tiles_asks_for_a_newer_version(bundle_copy: Path) -> None:
    """A layout that the manifest can state and this runtime does not run."""
    path = bundle_copy / schema.MANIFEST_NAME
    manifest = decode(path.read_bytes(), "manifest")
    manifest.vision.resize = Tiles(choose="best_resolution", fit="pad")
    manifest.vision.arrangements[0].views *= 5
    path.write_bytes(encode(manifest))
    with pytest.raises(BundleError, match=r"several sizes or views \(rule 'tiles'\), and this vtexport runs one"):
        Pipeline.open(bundle_copy, "prunesid-16")
    assert main(["inspect", str(bundle_copy)]) == 0
