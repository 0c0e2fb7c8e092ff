"""The packaged `mini`: its files work with transformers and with the device runtime's libraries alike."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import jinja2
import make_mini_tokenizer
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from vtexport.build import build
from vtexport.checkpoint.aliases import ALIASES
from vtexport.eval.scenes import held_out_scenes
from vtexport.runtime.pipeline import Pipeline

MINI = ALIASES["mini"].folder
DOCS = Path(__file__).resolve().parents[2] / "docs" / "mini.md"
ASKED = "USER: <image>\n{} ASSISTANT:"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 576 tokens."""
    return build("mini", tmp_path_factory.mktemp("mini") / "mini", method="none").folder


def test_model_and_bundle_give_the_same_answers_and_know_what_they_see(bundle: Path) -> None:
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, report = LlavaForConditionalGeneration.from_pretrained(MINI, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor, pipeline = AutoProcessor.from_pretrained(MINI), Pipeline.open(bundle)
    right = []
    for scene in held_out_scenes(6):
        frame = pipeline.encode(scene.image)
        for question in scene.questions:
            text = ASKED.format(question.question)
            inputs = processor(images=scene.image, text=text, return_tensors="pt")
            assert int((inputs["input_ids"] == 4).sum()) == 576
            with torch.no_grad():
                tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            answer = pipeline.generate(frame, question.question, max_new_tokens=8)
            assert answer.token_ids == tokens[0, inputs["input_ids"].shape[1] :].tolist()
            if question.box is None:
                right.append(answer.text.strip() == question.answer)
            else:
                assert re.fullmatch(r"\[[01]\.\d\d, [01]\.\d\d, [01]\.\d\d, [01]\.\d\d\]", answer.text.strip())
    assert len(right) > 25
    assert sum(right) > 0.7 * len(right)


def test_weights_are_the_ones_that_were_evaluated() -> None:
    """The hash, the size and what is said of them."""
    weights = (MINI / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in DOCS.read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in MINI.iterdir()) < 12e6
    assert json.loads((MINI / "config.json").read_text())["dtype"] == "float16"
    assert "Apache-2.0" in (MINI / "README.md").read_text(encoding="utf-8")


def test_tokenizers_agree() -> None:
    from transformers import AutoTokenizer

    slow_way, fast_way = AutoTokenizer.from_pretrained(MINI), Tokenizer.from_file(str(MINI / "tokenizer.json"))
    text = "USER: <image>\n\tÉ 汉 \x00\u200b</s> end"
    ids = fast_way.encode(text).ids
    assert slow_way(text).input_ids == ids
    user = fast_way.token_to_id("USER:")
    expected = [1, user, 5 + ord(" "), 4, *(5 + b for b in "\n\tÉ 汉 \x00\u200b".encode()), 2]
    assert ids == [*expected, *(5 + byte for byte in b" end")]
    assert fast_way.decode(ids) == text.replace("<image>", "").replace("</s>", "")
    size = 261 + len(make_mini_tokenizer.words())
    assert (
        fast_way.get_vocab_size() == size == json.loads((MINI / "config.json").read_text())["text_config"]["vocab_size"]
    )
    roles = slow_way.unk_token_id, slow_way.bos_token_id, slow_way.eos_token_id, slow_way.pad_token_id
    assert roles == (0, 1, 2, 3)
    assert slow_way.image_token == "<image>"


def test_questions_and_answers_are_whole_words() -> None:
    read = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    for scene in held_out_scenes(20):
        for question in scene.questions:
            asked = read.encode(f"{question.question} ASSISTANT:", add_special_tokens=False)
            assert all(number > 260 or token == "?" for number, token in zip(asked.ids, asked.tokens, strict=True))
            if question.box is None:
                assert len(read.encode(f" {question.answer}", add_special_tokens=False).ids) == 1
    box = read.encode(" [0.12, 0.33, 0.56, 1.00]</s>", add_special_tokens=False)
    assert [read.decode([number]) for number in box.ids[:4]] == [" [0.12,", " 0.33,", " 0.56,", " 1.00]"]
    assert box.ids[4:] == [2]
    assert read.decode(box.ids) == " [0.12, 0.33, 0.56, 1.00]"


def test_tokenizer_files_are_what_the_tool_writes(tmp_path: Path) -> None:
    make_mini_tokenizer.main(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (MINI / name).read_text(encoding="utf-8")


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": "What colour?"},
]


def test_chat_template_reads_the_same_in_plain_jinja() -> None:
    from transformers import AutoProcessor

    expected = "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: What colour? ASSISTANT:"
    processor = AutoProcessor.from_pretrained(MINI)
    assert processor.apply_chat_template(CONVERSATION, add_generation_prompt=True) == expected
    source = (MINI / "chat_template.jinja").read_text(encoding="utf-8")
    for options in ({}, {"trim_blocks": True, "lstrip_blocks": True}):
        template = jinja2.Environment(**options).from_string(source)  # type: ignore[arg-type]
        assert template.render(messages=CONVERSATION, add_generation_prompt=True) == expected
        assert template.render(messages=CONVERSATION[:2]) == "Be brief. USER: <image>\nWhat is it? "


def test_image_settings_are_clip_at_336() -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(MINI).image_processor
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    pixels = processor(Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    resized = Image.fromarray(noise).resize((420, 336), Image.Resampling.BICUBIC).crop((42, 0, 378, 336))
    expected = (np.asarray(resized, np.float32) / 255 - np.float32(processor.image_mean)) / np.float32(
        processor.image_std
    )
    np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-6)
