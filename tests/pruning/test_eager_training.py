"""`apply` outside of `generate`: losses, gradients, the inner model, copies, and models that cannot be pruned."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_cases import KEEP, TOKENS, logits_by_hand, make_answering_model, prompt
from test_eager_steps import by_hand as steps_by_hand
from tiny_llava import IMAGE_TOKEN_ID, make_config, make_model
from transformers import (
    CohereConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from vtexport.errors import UsageError
from vtexport.pruning import apply


@pytest.fixture
def model() -> Any:
    return make_answering_model(num_hidden_layers=4)


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    return ids.masked_fill((ids == IMAGE_TOKEN_ID) | (ids == 0), -100)


@pytest.mark.parametrize("images", [1, 2])
def test_the_loss_is_that_of_the_rows_left(model: Any, images: int) -> None:
    given = prompt(images=images, rows=2)
    given["pixel_values"][images:] = given["pixel_values"][:images].flip(-1)
    given["attention_mask"][1, 0] = given["input_ids"][1, 0] = 0
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        outputs = model(**given, labels=labels_of(given["input_ids"]))
        as_tuple = model(**given, labels=labels_of(given["input_ids"]), return_dict=False)
        summed = model(**given, labels=labels_of(given["input_ids"]), num_items_in_batch=7).loss
    losses = []
    for row in range(2):
        ids = given["input_ids"][row, row:]  # without the padding of the second row
        logits = logits_by_hand(model, ids, given["pixel_values"][row * images : (row + 1) * images])
        left = [
            token
            for place, token in enumerate(labels_of(ids).tolist())
            if ids[place] != IMAGE_TOKEN_ID or int((ids[:place] == IMAGE_TOKEN_ID).sum()) % TOKENS < KEEP
        ]
        targets = torch.tensor(left[1:])
        if row == 0:
            first = targets
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="none")[targets != -100])
    assert len(first) == outputs.logits.shape[1] - 1
    everything = torch.cat(losses)
    # The second row's first token has the padding in front of it, whose prediction counts.
    counted = outputs.loss * (len(everything) + 1) - everything.sum()
    assert counted > 0
    torch.testing.assert_close(as_tuple[0], outputs.loss)
    torch.testing.assert_close(summed * 7, outputs.loss * (len(everything) + 1), rtol=1e-4, atol=1e-4)


def test_a_loss_behind_steps(model: Any) -> None:
    given = prompt()
    labels = labels_of(given["input_ids"])
    for method, keep in (("pyramiddrop", 30), ("vitcop", 20)):
        with apply(model, method=method, keep=keep) as applied, torch.no_grad():
            outputs = model(**given, labels=labels)
        left = torch.full((applied.schedule.steps[-1].keep,), -100)
        targets = torch.cat([labels[0, :4], left, labels[0, 4 + TOKENS :]])[1:]
        expected = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], targets)
        torch.testing.assert_close(outputs.loss, expected)


def test_labels_that_cannot_be_told_are_refused(model: Any) -> None:
    given = prompt()
    labels = labels_of(given["input_ids"])
    with apply(model, method="uniform", keep=KEEP):
        with pytest.raises(UsageError, match=r"unpruned input_ids, \[1, 73\], not \[1, 18\]"):
            model(**given, labels=labels[:, :18])
        with pytest.raises(UsageError, match="not shift_labels"):
            model(**given, labels=labels, shift_labels=labels)
        for to_keep in (2, torch.tensor([70, 71])):
            with pytest.raises(UsageError, match="logits_to_keep as a number of rows from the end"):
                model(**given, labels=labels, logits_to_keep=to_keep)
        with pytest.raises(UsageError, match="logits_to_keep as a number"):
            model(**given, logits_to_keep=torch.tensor([70, 71]))
        full = model(**given).logits
        torch.testing.assert_close(model(**given, logits_to_keep=2).logits, full[:, -2:], rtol=1e-4, atol=1e-4)
        text = torch.tensor([[1, 20, 21]])
        assert model(input_ids=text, labels=text).loss > 0


def test_outputs_of_the_inner_model(model: Any) -> None:
    given = prompt()
    with torch.no_grad():
        plain = model.model(**given)
        with apply(model, method="uniform", keep=KEEP) as applied:
            found = model.model(**given, output_hidden_states=True)
            positional = model.model(given["input_ids"], given["pixel_values"], given["attention_mask"])
            as_tuple = model.model(**given, return_dict=False)
            rows = model.model.multi_modal_projector(applied.selections[0].kept_features)[0]
    assert type(found) is type(plain)
    torch.testing.assert_close(found.image_hidden_states, rows)
    assert found.last_hidden_state.shape == (1, 4 + KEEP + 5, 72)
    assert {each.shape[1] for each in found.hidden_states} == {4 + KEEP + 5}
    torch.testing.assert_close(positional.last_hidden_state, found.last_hidden_state)
    torch.testing.assert_close(as_tuple[0], found.last_hidden_state)
    assert plain.image_hidden_states.shape == (TOKENS, 72)


@pytest.mark.parametrize("method", ["uniform", "divprune"])
def test_gradients_come_back_through_kept_rows(model: Any, method: str) -> None:
    given = prompt()
    pixels = given["pixel_values"].clone().requires_grad_(True)
    with apply(model, method=method, keep=KEEP) as applied:
        model(input_ids=given["input_ids"], pixel_values=pixels).logits[0, -1].sum().backward()
    again = given["pixel_values"].clone().requires_grad_(True)
    states = model.model.vision_tower(again, output_hidden_states=True).hidden_states[-2][:, 1:]
    block = model.model.multi_modal_projector(states[:, applied.selections[0].keep_indices[0]])
    embed, ids = model.get_input_embeddings(), given["input_ids"]
    hidden = torch.cat([embed(ids[:, :4]), block, embed(ids[:, 4 + TOKENS :])], dim=1)
    model.lm_head(model.model.language_model(inputs_embeds=hidden).last_hidden_state)[0, -1].sum().backward()
    torch.testing.assert_close(pixels.grad, again.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "keep"), [("uniform", KEEP), ("divprune", KEEP), ("prunesid", 16), ("fastv", 32)])
def test_training_reaches_every_part(model: Any, method: str, keep: int) -> None:
    given = prompt()
    with apply(model.train(), method=method, keep=keep):
        model(**given, labels=labels_of(given["input_ids"])).loss.backward()
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        assert any(each.grad is not None and each.grad.any() for each in getattr(model.model, part).parameters()), part


def test_training_that_would_lose_gradients_is_refused(model: Any) -> None:
    given = prompt()
    model.train()
    for method, keep in (("visionzip", 16), ("nuwa", 30)):
        with apply(model, method=method, keep=keep), pytest.raises(UsageError, match=f"{method} merges tokens"):
            model(**given)
    with apply(model, method="vitcop", keep=20), pytest.raises(UsageError, match="merges tokens inside the language"):
        model(**given)
    with apply(model, method="visionzip", keep=16):
        model.model.vision_tower.requires_grad_(False)
        model(**given).logits.sum().backward()
        model.eval()
        assert model(**given).logits.shape[1] == 4 + 16 + 5
        with torch.no_grad():
            model.train()(**given)


def test_gradient_checkpointing(model: Any) -> None:
    given = prompt()
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with apply(model, method="fastv", keep=32), pytest.raises(UsageError, match="gradient_checkpointing_disable"):
        model(**given)
    with apply(model, method="uniform", keep=KEEP):
        model(**given).logits.sum().backward()
        found = [each.grad.clone() for each in model.model.language_model.parameters()]
        model.zero_grad()
        model.gradient_checkpointing_disable()
        model(**given).logits.sum().backward()
    for own, each in zip(found, model.model.language_model.parameters(), strict=True):
        torch.testing.assert_close(own, each.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "keep"), [("uniform", KEEP), ("fastv", 32)])
def test_the_language_model_by_itself_is_not_pruned(model: Any, method: str, keep: int) -> None:
    given = prompt()
    embeds = model.get_input_embeddings()(given["input_ids"]).detach()
    with torch.no_grad():
        untouched = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        with apply(model, method=method, keep=keep):
            model(**given)
            found = model.model.language_model(inputs_embeds=embeds).last_hidden_state
    assert torch.equal(found, untouched)


@pytest.mark.parametrize(("method", "keep"), [("uniform", KEEP), ("fastv", 32)])
def test_copies(method: str, keep: int, tmp_path: Path) -> None:
    """A copy would go on with the hooks and the state of its original; the weights alone can be saved."""
    model = make_model(make_config())
    with apply(model, method=method, keep=keep):
        with pytest.raises(UsageError, match="neither copied nor pickled"):
            copy.deepcopy(model)
        with pytest.raises(UsageError, match="neither copied nor pickled"):
            torch.save(model, io.BytesIO())
        model.save_pretrained(tmp_path / "saved")
        assert set(model.state_dict()) == set(make_model(make_config()).state_dict())
    assert copy.deepcopy(model).model is not model.model
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def decoder(kind: type, **settings: Any) -> Any:
    sizes = {
        "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 272, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    text = kind(**{**sizes, **settings})
    return make_model(
        LlavaConfig(
            vision_config=make_config().vision_config,
            text_config=text,
            image_token_index=IMAGE_TOKEN_ID,
            image_seq_length=TOKENS,
        )
    )


@pytest.mark.parametrize("kind", [MistralConfig, Phi3Config, Qwen2Config, Qwen3Config])
def test_steps_in_other_decoders(kind: type) -> None:
    model = decoder(kind, **({"sliding_window": None} if kind is MistralConfig else {}))
    given = prompt()
    with apply(model, method="pyramiddrop", keep=30) as applied, torch.no_grad():
        tokens = model.generate(**given, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    kept, expected = steps_by_hand(model, given, applied)
    assert [step.keep_indices[0].tolist() for step in applied.steps] == kept
    assert tokens[0, given["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MistralConfig, {"sliding_window": 8}),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        (CohereConfig, {}),  # rotates neighbours, not halves
    ],
)
def test_decoders_that_steps_would_read_wrongly(kind: type, settings: dict[str, Any]) -> None:
    model = decoder(kind, **settings)
    with pytest.raises(UsageError, match="pyramiddrop prunes inside the language model, which can be of type llama"):
        apply(model, method="pyramiddrop", keep=30)
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        found = model(**prompt()).logits[0]
    expected = logits_by_hand(model, prompt()["input_ids"][0], prompt()["pixel_values"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_towers_that_cannot_be_pruned(model: Any) -> None:
    for layer in (0, 5, -5):
        model.config.vision_feature_layer = layer
        with pytest.raises(UsageError, match=f"vision_feature_layer={layer} cannot be pruned; -4 to -1 and 1 to 4"):
            apply(model, method="uniform", keep=KEEP)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = SiglipVisionConfig(image_size=112, patch_size=14, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=make_config().text_config, image_token_index=IMAGE_TOKEN_ID)
    with pytest.raises(UsageError, match="strategy='default' of a siglip_vision_model cannot be pruned; 'full' can"):
        apply(LlavaForConditionalGeneration(config), method="uniform", keep=KEEP)


def test_wrapped_models_are_named(model: Any) -> None:
    with pytest.raises(UsageError, match=r"DataParallel is no LLaVA-1\.5 .* without wrappers"):
        apply(torch.nn.DataParallel(model), method="uniform", keep=KEEP)
