"""What the tests of `apply` compare with: sequences put together by hand for the inner model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_llava import IMAGE_TOKEN_ID, make_config, make_model

from vtexport.pruning import select

TOKENS, KEEP = 64, 9
TEXT = [1, 20, 21, 22], [30, 31, 32, 33, 34]


def make_answering_model(**text: Any) -> Any:
    """A small LLaVA that never answers with a placeholder, which is no token of an answer."""
    model = make_model(make_config(**text))
    with torch.no_grad():
        model.lm_head.weight[IMAGE_TOKEN_ID] = 0
    return model


def prompt(images: int = 1, rows: int = 1, skip: int = 0) -> dict[str, torch.Tensor]:
    """Rows of the same prompt with pixels of their own; `skip` leaves out that many tokens of the first text."""
    ids = TEXT[0][: 4 - skip] + images * ([IMAGE_TOKEN_ID] * TOKENS + TEXT[1])
    pixels = torch.randn(images * rows, 3, 112, 112, generator=torch.Generator().manual_seed(1 + skip))
    return {
        "input_ids": torch.tensor([ids] * rows),
        "attention_mask": torch.ones(rows, len(ids), dtype=torch.long),
        "pixel_values": pixels,
    }


@torch.no_grad()
def logits_by_hand(model: Any, ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """[L', V] of one row of token ids [L] whose images keep `KEEP` tokens by the method uniform, numbered through."""
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
    blocks = model.model.multi_modal_projector(select("uniform", states, keep=KEEP).kept_features)
    embed, parts, images = model.get_input_embeddings(), [], iter(blocks)
    place = 0
    while place < len(ids):
        if ids[place] == IMAGE_TOKEN_ID:
            parts.append(next(images))
            place += TOKENS
        else:
            parts.append(embed(ids[place : place + 1]))
            place += 1
    hidden = torch.cat(parts)[None]
    settings = {"attention_mask": torch.ones(1, hidden.shape[1]), "use_cache": False}
    return model.lm_head(model.model.language_model(inputs_embeds=hidden, **settings).last_hidden_state)[0]


def greedy(model: Any, ids: torch.Tensor, pixel_values: torch.Tensor, new: int) -> list[int]:
    """Greedy tokens behind one row of ids, the whole sequence anew for every token."""
    for _ in range(new):
        ids = torch.cat([ids, logits_by_hand(model, ids, pixel_values)[-1:].argmax(-1)])
    return ids[-new:].tolist()


def new_tokens(model: Any, given: dict[str, Any], new: int = 8, **settings: Any) -> list[list[int]]:
    """What `generate` puts behind the prompt, with end tokens like any others."""
    free = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(**given, max_new_tokens=new, **{**free, **settings})
    return tokens[:, given["input_ids"].shape[1] :].tolist()


def loop(
    model: Any, given: dict[str, Any], new: int = 8, mask: Callable[[int], Any] = lambda length: None
) -> list[int]:
    """Greedy tokens of a loop of a user's own, on the cache that the first pass returns."""
    length = given["input_ids"].shape[1]
    with torch.no_grad():
        outputs = model(**{**given, "attention_mask": mask(length)}, use_cache=True)
        tokens = [int(outputs.logits[0, -1].argmax())]
        while len(tokens) < new:
            length += 1
            ids, cache = torch.tensor([tokens[-1:]]), outputs.past_key_values
            outputs = model(input_ids=ids, past_key_values=cache, attention_mask=mask(length))
            tokens.append(int(outputs.logits[0, -1].argmax()))
    return tokens
