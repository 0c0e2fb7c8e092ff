"""Bundles of methods that read more of the tower, merge rows, keep positions or hand on more: against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_outputs import run_session, vision_outputs
from PIL import Image
from test_parity import NEW_TOKENS, PROMPT, load, prefill_logits, pytorch_inputs
from tiny_llava import IMAGE_TOKEN_ID, PHOTO

from vtexport.build import build
from vtexport.bundle.reader import open_bundle
from vtexport.pruning import ModelShape, Selection, get_method, make_options, select
from vtexport.runtime.pipeline import Pipeline

GRID = 8


@torch.no_grad()
def pytorch_signals(model: Any, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Everything that methods read from transformers' own vision tower, without CLS."""
    tower = model.model.vision_tower
    seen: list[torch.Tensor] = []
    projection = tower.encoder.layers[-2].self_attn.k_proj
    handle = projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    out = tower(pixels, output_hidden_states=True, output_attentions=True)
    handle.remove()
    heads = tower.config.num_attention_heads
    late = out.hidden_states[round(2 * tower.config.num_hidden_layers / 3) :]
    signals = {
        "features": out.hidden_states[-2][:, 1:],
        "scores": out.attentions[-2][:, :, 0, 1:].sum(1),
        "keys": seen[0][:, 1:].unflatten(-1, (heads, -1)),
        "similarity_features": torch.stack(late).mean(0)[:, 1:],
    }
    return {name: value.numpy() for name, value in signals.items()}


@torch.no_grad()
def pytorch_answer(
    model: Any, inputs: Any, selection: Selection, visual_positions: np.ndarray, span: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Visual block, logits of the prefill and greedy tokens, with every token at its position and without a cache."""
    block = model.model.multi_modal_projector(torch.from_numpy(selection.kept_features))
    ids = inputs["input_ids"][0]
    at = torch.nonzero(ids == IMAGE_TOKEN_ID).flatten()
    embed = model.get_input_embeddings()
    before, after = ids[None, : at[0]], ids[None, at[-1] + 1 :]
    embeds = torch.cat([embed(before), block, embed(after)], dim=1)
    start, end = int(at[0]), int(at[0]) + span
    places = [*range(start), *(start + visual_positions), *range(end, end + after.shape[1])]
    tokens: list[int] = []
    first = None
    while len(tokens) < NEW_TOKENS and model.config.text_config.eos_token_id not in tokens:
        position_ids = torch.tensor([places])
        mask = torch.ones(position_ids.shape, dtype=torch.long)  # else gaps would be taken for borders of sequences
        logits = model(inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask).logits[0, -1]
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
        embeds = torch.cat([embeds, embed(torch.tensor([[tokens[-1]]]))], dim=1)
        places.append(places[-1] + 1)
    assert first is not None
    return block, first, tokens


@pytest.mark.parametrize(
    ("method", "keep", "options"),
    [
        ("nuwa", 16, {"stages": "1"}),
        ("nuwa", 21, {"stages": "1", "variant": "paper", "distance": 12.0}),
        ("vitcop", 19, {"stages": "1"}),
        ("vitcop", 19, {"stages": "1", "clusters": True, "cutoff": 4.0}),
    ],
    ids=["nuwa", "nuwa as the paper", "vitcop", "vitcop with clusters"],
)
def test_bundle_equals_pytorch(
    method: str, keep: int, options: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = build(str(tiny_checkpoint), tmp_path / "bundle", method=method, keep=keep, options=options).folder
    image, pipeline = Image.open(PHOTO), Pipeline.open(folder)
    model, inputs = load(tiny_checkpoint), pytorch_inputs(tiny_checkpoint, image)
    signals = pytorch_signals(model, inputs["pixel_values"])
    graph = vision_outputs(pipeline, inputs["pixel_values"].numpy())
    for name in graph:
        value = graph[name][:, 1:] if name == "features" else graph[name]
        np.testing.assert_allclose(value, signals[name], rtol=0, atol=2e-5 * float(np.abs(value).max()), err_msg=name)
    chosen, shape = get_method(method), ModelShape((GRID, GRID), model.config.text_config.num_hidden_layers)
    schedule = chosen.plan(make_options(chosen, options), shape, keep)
    wanted = ["features", *(name for name in graph if name != "features")]
    assert len(wanted) == 1 + len(schedule.signals)
    selection = select(method, **{name: signals[name] for name in wanted}, keep=keep, **options)

    visual = pipeline.encode(image)
    assert visual.keep_indices.tolist() == selection.keep_indices[0].tolist()
    original = schedule.first.positions == "original"
    positions = selection.keep_indices[0] if original else np.arange(keep)
    span = GRID * GRID if original else keep
    np.testing.assert_array_equal(visual.positions, [positions])
    assert visual.position_span == span
    block, logits, tokens = pytorch_answer(model, inputs, selection, positions, span)
    np.testing.assert_allclose(visual.embeddings, block.numpy(), rtol=0, atol=2e-5 * float(block.abs().max()))
    tolerance = 2e-5 * float(logits.abs().max())
    np.testing.assert_allclose(prefill_logits(pipeline, image), logits.numpy(), rtol=0, atol=tolerance)
    assert pipeline.generate(image, PROMPT, max_new_tokens=NEW_TOKENS).token_ids == tokens
    assert len(set(tokens)) > 4, "a model that repeats itself proves little"

    outputs = run_session(pipeline.stages._prune[pipeline.name], graph)
    common = {"image_features", "keep_indices", "visual_positions"}
    if method == "nuwa":
        assert set(outputs) == common | {"merged"}
        assert selection.merged is not None
        np.testing.assert_array_equal(outputs["merged"], selection.merged)
        assert 0 < selection.merged.sum() < keep
    else:
        assert set(outputs) == common | ({"labels"} if schedule.settings["clusters"] else set())
        if "labels" in outputs:
            np.testing.assert_array_equal(outputs["labels"], selection.details["labels"])
    declared = {each.name for each in open_bundle(folder).manifest.graphs[f"{pipeline.name}.prune"].outputs}
    assert declared == set(outputs)


def test_positions_matter(tiny_checkpoint: Path) -> None:
    """The logits of original positions are not those of contiguous ones, so the test above can tell them apart."""
    inputs = pytorch_inputs(tiny_checkpoint, Image.open(PHOTO))
    model = load(tiny_checkpoint)
    signals = pytorch_signals(model, inputs["pixel_values"])
    del signals["keys"]
    selection = select("nuwa", **signals, keep=16)
    logits = [
        pytorch_answer(model, inputs, selection, *places)[1]
        for places in ((selection.keep_indices[0], GRID * GRID), (np.arange(16), 16))
    ]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-2 * float(logits[0].abs().max())
