"""`apply` on a small LLaVA: against the untouched model, against a prefill put together by hand, against the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eager_cases import set_positions
from PIL import Image
from tiny_llava import IMAGE_TOKEN_ID, PHOTO, make_config, make_model

from vtexport.errors import InputError, UsageError
from vtexport.pruning import apply, select

TOKENS = 64
TEXT_BEFORE, TEXT_AFTER = [1, 20, 21, 22], [30, 31, 32, 33, 34]


@pytest.fixture
def model() -> Any:
    """A model of its own for each test, since `apply` changes it."""
    return make_model(make_config())


def inputs(images: int = 1, rows: int = 1) -> dict[str, torch.Tensor]:
    ids = TEXT_BEFORE + images * ([IMAGE_TOKEN_ID] * TOKENS + TEXT_AFTER)
    pixels = torch.randn(images * rows, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": torch.tensor([ids] * rows),
        "attention_mask": torch.ones(rows, len(ids), dtype=torch.long),
        "pixel_values": pixels,
    }


@torch.no_grad()
def by_hand(model: Any, given: dict[str, torch.Tensor], block: torch.Tensor, positions: torch.Tensor) -> list[int]:
    """Greedy tokens of a loop of our own: the visual block between the texts, positions given one by one."""
    embed = model.get_input_embeddings()
    before, after = torch.tensor([TEXT_BEFORE]), torch.tensor([TEXT_AFTER])
    hidden = torch.cat([embed(before), block, embed(after)], dim=1)
    ids = positions.tolist()
    tokens: list[int] = []
    for _ in range(12):
        # A mask, because without one transformers takes gaps in the positions for borders between packed sequences.
        settings = {"position_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)), "use_cache": False}
        state = model.model.language_model(inputs_embeds=hidden, **settings)
        tokens.append(int(model.lm_head(state.last_hidden_state)[0, -1].argmax()))
        hidden = torch.cat([hidden, embed(torch.tensor([[tokens[-1]]]))], dim=1)
        ids.append(ids[-1] + 1)
    return tokens


def generated(model: Any, given: dict[str, torch.Tensor], **settings: Any) -> list[list[int]]:
    tokens = model.generate(**given, max_new_tokens=12, min_new_tokens=12, do_sample=False, **settings)
    return tokens[:, given["input_ids"].shape[1] :].tolist()


def without_mask(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in given.items() if name != "attention_mask"}


def test_without_pruning_nothing_changes(model: Any) -> None:
    given = inputs(images=2, rows=2)
    untouched = generated(model, given)
    with apply(model, method="none"):
        assert generated(model, given) == untouched
    assert generated(model, given) == untouched


@pytest.mark.parametrize("use_cache", [True, False])
def test_contiguous_positions(model: Any, use_cache: bool) -> None:
    given = inputs()
    with torch.no_grad():
        states = model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        kept = select("uniform", states, keep=9)
        block = model.model.multi_modal_projector(kept.kept_features)
    expected = by_hand(model, given, block, torch.arange(4 + 9 + 5))
    untouched = generated(model, given)
    with apply(model, method="uniform", keep=9) as applied:
        assert generated(model, given, use_cache=use_cache) == [expected]
        assert int(model(**without_mask(given)).logits[0, -1].argmax()) == expected[0]
        assert torch.equal(applied.selections[0].keep_indices, kept.keep_indices)
    assert expected != untouched[0], "a model that answers the same whatever it sees proves nothing"


def test_original_positions(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_positions("original", monkeypatch)
    given = inputs()
    with apply(model, method="uniform", keep=9) as applied:
        found = generated(model, given)
        kept = applied.selections[0]
    block = model.model.multi_modal_projector(kept.kept_features)
    positions = torch.cat([torch.arange(4), 4 + kept.keep_indices[0], 4 + TOKENS + torch.arange(5)])
    expected = by_hand(model, given, block, positions)
    assert found == [expected]
    with apply(model, method="uniform", keep=9):
        assert int(model(**without_mask(given), use_cache=False).logits[0, -1].argmax()) == expected[0]


def test_signals_equal_transformers_own(model: Any) -> None:
    """The attention row against transformers' eager maps; prunesid picks what the reference picks from them."""
    given = inputs()
    with apply(model, method="prunesid", keep=16) as applied:
        generated(model, given)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model.vision_tower(given["pixel_values"], output_hidden_states=True, output_attentions=True)
    expected = select("prunesid", out.hidden_states[-2], out.attentions[-2][:, :, 0, 1:].sum(1), keep=16)
    assert torch.equal(applied.selections[0].keep_indices, expected.keep_indices)


def test_padded_batch_answers_like_single_rows(model: Any) -> None:
    first, second = inputs(), inputs()
    second["input_ids"] = torch.cat([second["input_ids"][:, :1], second["input_ids"][:, 2:]], dim=1)
    second["pixel_values"] = second["pixel_values"].flip(-1)
    second["attention_mask"] = second["attention_mask"][:, 1:]
    pad = torch.tensor([[0]])
    both = {
        "input_ids": torch.cat([first["input_ids"], torch.cat([pad, second["input_ids"]], dim=1)]),
        "attention_mask": torch.cat([first["attention_mask"], torch.cat([pad, second["attention_mask"]], dim=1)]),
        "pixel_values": torch.cat([first["pixel_values"], second["pixel_values"]]),
    }
    with apply(model, method="prunesid", keep=16):
        assert generated(model, both) == generated(model, first) + generated(model, second)


def test_the_bundle_answers_the_same(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from vtexport.runtime.pipeline import Pipeline

    model = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    read = AutoProcessor.from_pretrained(tiny_checkpoint, local_files_only=True)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = read.apply_chat_template(messages, add_generation_prompt=True)
    given = read(images=Image.open(PHOTO), text=text, return_tensors="pt")
    with apply(model, method="prunesid", keep=16) as applied:
        tokens = model.generate(**given, max_new_tokens=24, do_sample=False)[0, given["input_ids"].shape[1] :].tolist()
    answer = Pipeline.open(tiny_bundle, "prunesid-16").generate(PHOTO, "What is it?", max_new_tokens=24)
    assert answer.token_ids == tokens
    np.testing.assert_array_equal(answer.keep_indices, applied.selections[0].keep_indices[0])


def test_a_reported_count_cuts_the_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """SVD-Prune's leverage mode fills the budget behind `count`; neither form lets that filling into the prompt."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from vtexport.build import build
    from vtexport.runtime.pipeline import Pipeline

    options = {"mode": "leverage", "leverage": 0.4}
    model = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    read = AutoProcessor.from_pretrained(tiny_checkpoint, local_files_only=True)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = read.apply_chat_template(messages, add_generation_prompt=True)
    given = read(images=Image.open(PHOTO), text=text, return_tensors="pt")
    with apply(model, method="svdprune", keep=40, **options) as applied:
        tokens = model.generate(**given, max_new_tokens=24, do_sample=False)[0, given["input_ids"].shape[1] :].tolist()
    count = int(applied.selections[0].details["count"][0])
    assert 4 <= count < 40
    folder = build(str(tiny_checkpoint), tmp_path / "bundle", method="svdprune", keep=40, options=options).folder
    answer = Pipeline.open(folder).generate(PHOTO, "What is it?", max_new_tokens=24)
    assert answer.visual_tokens == count
    assert answer.token_ids == tokens


def test_what_is_not_finite_is_refused(model: Any) -> None:
    given = inputs()
    given["pixel_values"][0, 0, 0, 0] = float("nan")
    with apply(model, method="uniform", keep=9), pytest.raises(InputError, match="NaN or infinite"):
        model(**given)


def test_text_alone_passes_through(model: Any) -> None:
    ids = torch.tensor([[1, 20, 21]])
    untouched = model(input_ids=ids).logits
    with apply(model, method="uniform", keep=9):
        assert torch.equal(model(input_ids=ids).logits, untouched)


def test_faults(model: Any) -> None:
    with pytest.raises(UsageError, match="Linear is no LLaVA"):
        apply(torch.nn.Linear(2, 2), method="none")
    with pytest.raises(UsageError, match="keep=65"):
        apply(model, method="uniform", keep=65)
    with pytest.raises(UsageError, match="'sed' is not known to random"):
        apply(model, method="random", keep=4, sed=1)
    given = inputs()
    with apply(model, method="uniform", keep=9):
        with pytest.raises(UsageError, match="pruned already"):
            apply(model, method="none")
        given["input_ids"][0, 10] = 9
        with pytest.raises(InputError, match=r"1 images of 64 visual tokens .*\[63\]"):
            model(**given)
    assert "_vtexport_pruned" not in vars(model.model)
