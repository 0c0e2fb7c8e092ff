"""Saves a very small LLaVA by the installed transformers, with what it answers, into a folder named by the version.

From the repository's root, in an environment with the transformers in question:
`PYTHONPATH=.:tests/support:tools python tests/data/saved_by_transformers/save.py`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image
from tiny_llava import IMAGE_TOKEN_ID, PHOTO, VOCABULARY, add_text_files, make_model
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

QUESTION = "What is this?"


def main() -> None:
    folder = Path(__file__).parent / transformers.__version__
    shutil.rmtree(folder, ignore_errors=True)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=VOCABULARY, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN_ID, image_seq_length=16)
    make_model(config).half().save_pretrained(folder)
    with tempfile.TemporaryDirectory() as files:
        add_text_files(Path(files), 56)
        processor = LlavaProcessor(
            image_processor=CLIPImageProcessor.from_pretrained(files),
            tokenizer=AutoTokenizer.from_pretrained(files),
            patch_size=14,
            vision_feature_select_strategy="default",
            chat_template=(Path(files) / "chat_template.jinja").read_text(),
            num_additional_image_tokens=1,
        )
    processor.save_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32).eval()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.open(PHOTO), text=prompt, return_tensors="pt")
    ids = inputs["input_ids"]
    tokens = model.generate(
        input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(ids), max_new_tokens=16,
        do_sample=False,
    )  # fmt: skip
    answer = {"question": QUESTION, "input_ids": ids[0].tolist(), "token_ids": tokens[0, ids.shape[1] :].tolist()}
    (folder / "answer.json").write_text(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
