"""The packaged `mini`: its files work with transformers and with the device runtime's libraries alike."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.resolve import Checkpoint, open_checkpoint

MINI = ALIASES["mini"].folder
TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_mini_tokenizer.py"
PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint("mini", cache_dir=tmp_path_factory.mktemp("cache"), notify=lambda line: None)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_mini_tokenizer", TOOL)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_model_and_processor_load_and_answer(mini: Checkpoint) -> None:
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, report = LlavaForConditionalGeneration.from_pretrained(mini.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(mini.folder)
    inputs = processor(images=Image.new("RGB", (500, 400), "red"), text=PROMPT, return_tensors="pt")
    assert int((inputs["input_ids"] == 4).sum()) == 576
    assert inputs["input_ids"][0, 0] == 1
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 336, 336)

    def logits(colour: str, prompt: str) -> Any:
        with torch.no_grad():
            prepared = processor(images=Image.new("RGB", (500, 400), colour), text=prompt, return_tensors="pt")
            return model(**prepared).logits[0, -1]

    red = logits("red", PROMPT)
    assert torch.isfinite(red).all()
    assert 0.3 < red.std() < 3
    # random weights, yet the answer depends on the image and on the question
    assert (logits("blue", PROMPT) - red).std() > 0.2 * red.std()
    assert (logits("red", PROMPT.replace("What is it?", "How many are there?")) - red).std() > 0.2 * red.std()


def test_tokenizers_agree() -> None:
    from transformers import AutoTokenizer

    slow_way, fast_way = AutoTokenizer.from_pretrained(MINI), Tokenizer.from_file(str(MINI / "tokenizer.json"))
    text = "USER: <image>\n\tÉ 汉 \x00\u200b</s> end"
    ids = fast_way.encode(text).ids
    assert slow_way(text).input_ids == ids
    expected = [1, *(5 + byte for byte in b"USER: "), 4, *(5 + b for b in "\n\tÉ 汉 \x00\u200b".encode()), 2]
    assert ids == [*expected, *(5 + byte for byte in b" end")]
    assert fast_way.decode(ids) == text.replace("<image>", "").replace("</s>", "")
    assert (
        fast_way.get_vocab_size() == 261 == json.loads((MINI / "config.json").read_text())["text_config"]["vocab_size"]
    )
    roles = slow_way.unk_token_id, slow_way.bos_token_id, slow_way.eos_token_id, slow_way.pad_token_id
    assert roles == (0, 1, 2, 3)
    assert slow_way.image_token == "<image>"


def test_tokenizer_files_are_what_the_tool_writes(tool: ModuleType, tmp_path: Path) -> None:
    tool.main(tmp_path)
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
