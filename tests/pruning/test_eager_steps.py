"""Steps inside the language model against a loop of our own, with transformers' attention maps and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_eager import generated, inputs
from tiny_llava import make_config, make_model

from vtexport.errors import UsageError
from vtexport.pruning import apply
from vtexport.pruning.eager.apply import Applied

START, TOKENS, NEW = 4, 64, 12


@pytest.fixture
def model() -> Any:
    return make_model(make_config(num_hidden_layers=4))


@torch.no_grad()
def layers_run(model: Any, hidden: torch.Tensor, positions: torch.Tensor, layers: range) -> tuple[torch.Tensor, Any]:
    """Rows behind `layers`, and the last of these layers' attention maps [heads, S, S]."""
    decoder = model.model.language_model
    rows = hidden.shape[1]
    mask = torch.full((rows, rows), torch.finfo(torch.float32).min).triu(1)[None, None]
    turned = decoder.rotary_emb(hidden, position_ids=positions[None])
    maps = None
    for number in layers:
        layer = decoder.layers[number]
        x = layer.input_layernorm(hidden)
        attended, maps = layer.self_attn(x, attention_mask=mask, position_embeddings=turned)
        hidden = hidden + attended
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden, None if maps is None else maps[0]


@torch.no_grad()
def by_hand(model: Any, given: dict[str, torch.Tensor], applied: Applied) -> tuple[list[list[int]], list[int]]:
    """Tokens that each step keeps, and greedy tokens; the whole sequence anew for every token."""
    model.set_attn_implementation("eager")
    embed = model.get_input_embeddings()
    ids = given["input_ids"][0]
    states = model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    block = model.model.multi_modal_projector(states)
    prompt = torch.cat([embed(ids[None, :START]), block, embed(ids[None, START + TOKENS :])], dim=1)
    steps, layers = applied.schedule.steps, model.config.text_config.num_hidden_layers
    edges = [0, *(step.layer for step in steps), layers]
    kept: list[list[int]] = []
    tokens: list[int] = []
    while len(tokens) < NEW:
        hidden = torch.cat([prompt, embed(torch.tensor([tokens], dtype=torch.long))], dim=1)
        positions = torch.arange(hidden.shape[1])
        count = TOKENS
        for number, step in enumerate(steps):
            entered = hidden
            hidden, maps = layers_run(model, hidden, positions, range(edges[number], edges[number + 1]))
            if step.source == "behind":
                _, maps = layers_run(model, hidden, positions, range(step.layer, step.layer + 1))
            del entered
            if len(kept) <= number:
                row = maps.mean(0)[-1, START : START + count]
                kept.append(sorted(row.topk(step.keep).indices.tolist()))
            rows = torch.tensor(
                [*range(START), *(START + i for i in kept[number]), *range(START + count, hidden.shape[1])]
            )
            hidden, positions, count = hidden[:, rows], positions[rows], step.keep
            if step.positions == "compacted":
                positions = torch.arange(len(rows))
        hidden, _ = layers_run(model, hidden, positions, range(edges[-2], layers))
        logits = model.lm_head(model.model.language_model.norm(hidden))[0, -1]
        tokens.append(int(logits.argmax()))
    return kept, tokens


@pytest.mark.parametrize(
    ("method", "keep", "options"),
    [
        ("fastv", 32, {}),
        ("fastv", 40, {"layer": 2}),
        ("pyramiddrop", 30, {}),
        ("pyramiddrop", 30, {"positions": "original"}),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generated_tokens(model: Any, method: str, keep: int, options: dict[str, Any], attention: str) -> None:
    given = inputs()
    model.set_attn_implementation(attention)
    untouched = generated(model, given)
    with apply(model, method=method, keep=keep, **options) as applied:
        found = generated(model, given)
        again = generated(model, given)
    kept, tokens = by_hand(model, given, applied)
    assert [step.keep_indices[0].tolist() for step in applied.steps] == kept
    assert found == again == [tokens]
    assert found != untouched
    model.set_attn_implementation(attention)
    assert generated(model, given) == untouched, "the hooks are off again"


def test_text_between_conversations(model: Any) -> None:
    """A pass without an image after one with an image is not touched."""
    ids = torch.tensor([[1, 20, 21, 22]])
    untouched = model(input_ids=ids).logits
    with apply(model, method="fastv", keep=32):
        generated(model, inputs())
        assert torch.equal(model(input_ids=ids).logits, untouched)


def test_what_cannot_be_pruned_is_refused(model: Any) -> None:
    with apply(model, method="fastv", keep=32):
        with pytest.raises(UsageError, match="fastv prunes inside the language model and takes one prompt"):
            generated(model, inputs(rows=2))
        with pytest.raises(UsageError, match="1 with 2 images"):
            generated(model, inputs(images=2))
    with pytest.raises(UsageError, match=r"keep=16 is not allowed for fastv on this model.* from 17 to 64"):
        apply(model, method="fastv", keep=16)
    with pytest.raises(UsageError, match="before the layers 4 of a decoder of 4; they have to rise from 1 to 3"):
        apply(model, method="fastv", keep=32, layer=4)
