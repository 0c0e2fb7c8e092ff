"""gpu-check's LLaVA in plain PyTorch is the model, and what is made of its times is right; on the CPU, tiny."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_check.llava import TINY, Shape, make_llava
from gpu_check.measure import WallClock
from gpu_check.model import SCENES, Scene, break_even, run_scene, with_ratios
from tiny_llava import make_config, make_model


def copied(own: Any, other: Any) -> None:
    own.load_state_dict(other.state_dict())


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """transformers' tiny model and ours with its weights."""
    theirs = make_model(make_config(num_key_value_heads=6, head_dim=12))
    shape = Shape(image=112, vision_width=48, vision_heads=4, vision_hidden=80, vision_layers=3, width=72, heads=6,
                  hidden=112, layers=3, vocabulary=272)  # fmt: skip
    ours = make_llava(shape, "cpu", torch.float32)
    tower, decoder = theirs.model.vision_tower, theirs.model.language_model
    tower = getattr(tower, "vision_model", tower)
    with torch.no_grad():
        ours.vision.cls.copy_(tower.embeddings.class_embedding)
        ours.vision.positions.copy_(tower.embeddings.position_embedding.weight)
    copied(ours.vision.patches, tower.embeddings.patch_embedding)
    copied(ours.vision.before, tower.pre_layrnorm)
    for mine, layer in zip(ours.vision.layers, tower.encoder.layers, strict=False):
        for own, other in (
            *((mine.before_attention, layer.layer_norm1), (mine.before_mlp, layer.layer_norm2)),
            *((mine.query, layer.self_attn.q_proj), (mine.key, layer.self_attn.k_proj)),
            *((mine.value, layer.self_attn.v_proj), (mine.out, layer.self_attn.out_proj)),
            *((mine.up, layer.mlp.fc1), (mine.down, layer.mlp.fc2)),
        ):
            copied(own, other)
    copied(ours.projector.first, theirs.model.multi_modal_projector.linear_1)
    copied(ours.projector.second, theirs.model.multi_modal_projector.linear_2)
    for mine, layer in zip(ours.decoder.layers, decoder.layers, strict=True):
        for own, other in (
            *((mine.before_attention, layer.input_layernorm), (mine.before_mlp, layer.post_attention_layernorm)),
            *((mine.query, layer.self_attn.q_proj), (mine.key, layer.self_attn.k_proj)),
            *((mine.value, layer.self_attn.v_proj), (mine.out, layer.self_attn.o_proj)),
            *((mine.gate, layer.mlp.gate_proj), (mine.up, layer.mlp.up_proj), (mine.down, layer.mlp.down_proj)),
        ):
            copied(own, other)
    copied(ours.decoder.last, decoder.norm)
    copied(ours.decoder.logits, theirs.lm_head)
    return theirs, ours


@torch.no_grad()
def test_the_vision_tower_is_clips(both: tuple[Any, Any]) -> None:
    theirs, ours = both
    pixels = torch.randn(2, 3, 112, 112)
    theirs.set_attn_implementation("eager")
    found = theirs.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    features, scores = ours.vision(pixels)
    torch.testing.assert_close(features, found.hidden_states[-2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, found.attentions[-2][:, :, 0, 1:].sum(1), atol=1e-5, rtol=1e-4)
    projected = theirs.model.multi_modal_projector(features[:, 1:])
    torch.testing.assert_close(ours.projector(features[:, 1:]), projected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_decoder_is_llama(both: tuple[Any, Any]) -> None:
    theirs, ours = both
    embeddings = torch.randn(1, 21, 72)
    expected = theirs.lm_head(theirs.model.language_model(inputs_embeds=embeddings).last_hidden_state)[:, -1:]
    logits, cache = ours.decoder(embeddings)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert [tuple(each.shape) for each in cache] == [(1, 6, 21, 12)] * 6


def test_a_scene_gives_a_row_a_budget() -> None:
    """Selection here is the first patches: what is looked at is how stages are put together."""
    llava = make_llava(TINY, "cpu", torch.float32)
    asked = []

    def select(features: Any, scores: Any, keep: int) -> tuple[Any, Any]:
        asked.append((tuple(features.shape), tuple(scores.shape), keep))
        return (lambda: None), features[:, 1 : 1 + keep]

    scene = Scene("tiny", 2, (32, 8, 4))
    found = run_scene(
        llava, scene, select, style=lambda *each: None, clock=WallClock(), capture=lambda run: run, samples=3
    )
    assert asked == [((2, 17, 32), (2, 16), 4), ((2, 17, 32), (2, 16), 2)]
    assert [row["visual_tokens"] for row in found] == [32, 8, 4]
    assert [row["rows"] for row in found] == [92, 68, 64]
    assert "selection_ms" not in found[0]
    for row in found:
        for stage in ("vision_ms", "projector_ms", "prefill_ms"):
            assert len(row[stage]["samples"]) == 3
            assert row[stage]["median"] > 0


def test_the_scenes_are_the_issues() -> None:
    assert [scene.budgets for scene in SCENES] == [(576, 192, 128, 64), (2880, 640, 320, 160)]
    assert all(budget % scene.crops == 0 for scene in SCENES for budget in scene.budgets)
    assert Shape().grid == (24, 24)


def made_up(tokens: int, selection: float | None, prefill: float) -> dict[str, Any]:
    times = {"vision": 10.0, "projector": 1.0, "prefill": prefill}
    times |= {} if selection is None else {"selection": selection}
    return {"visual_tokens": tokens, **{f"{name}_ms": {"median": value} for name, value in times.items()}}


def test_what_follows_from_the_times() -> None:
    """By made-up times."""
    full, pruned = with_ratios([made_up(576, None, 100.0), made_up(64, 1.0, 19.0)])
    assert pruned["selection_share"] == pytest.approx(1 / 19)
    assert pruned["prefill_speedup"] == pytest.approx(5)
    assert pruned["speedup_behind_vision"] == pytest.approx(101 / 21)
    assert pruned["speedup_in_all"] == pytest.approx(111 / 31)
    assert full["break_even"] == pytest.approx(64 + 512 * 80 / 81)


def test_break_even() -> None:
    points = [(576, 100.0), (64, 20.0), (320, 40.0)]
    assert break_even(points, 10.0) == pytest.approx(320 + 256 * 50 / 60)
    assert break_even(points, 70.0) == pytest.approx(64 + 256 * 10 / 20)
    assert break_even(points, 85.0) == 0, "selection takes longer than pruning saves"
    assert break_even(points, 0.0) == 576
