"""Steps inside language models with fused projections and with normed heads, beside bundles of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_parts import config_of
from tiny_llava import make_model, save_model
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtexport.build import build
from vtexport.pruning import apply
from vtexport.runtime.pipeline import Pipeline

SIZES = {"num_hidden_layers": 4, "max_position_embeddings": 384}
KEEP = {"fastv": 40, "pyramiddrop": 30}
PROMPT = "What is on the table?"


@pytest.mark.parametrize("method", KEEP)
@pytest.mark.parametrize("parts", ["clip and qwen3", "clip and phi3"])
def test_kept_rows_and_tokens_are_the_bundles(parts: str, method: str, photo: Path, tmp_path: Path) -> None:
    """Keys and queries of a step come from the same fused or normed projections on both sides."""
    checkpoint = save_model(make_model(config_of(parts, SIZES), seed=4), tmp_path / "checkpoint")
    bundle = build(str(checkpoint), tmp_path / "bundle", method=method, keep=KEEP[method])
    answer = Pipeline(bundle).generate(photo, PROMPT, max_new_tokens=32)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    messages = [{"role": "user", "content": [{"type": "image", "path": str(photo)}, {"type": "text", "text": PROMPT}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with apply(model, method=method, keep=KEEP[method]) as applied:
        tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        kept = [each.keep_indices[0].tolist() for each in applied.steps]
    assert kept == list(answer.kept_by_layer.values())
    assert tokens[0, inputs["input_ids"].shape[1] :].tolist() == answer.token_ids
