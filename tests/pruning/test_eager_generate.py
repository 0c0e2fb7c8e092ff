"""`apply` under what `generate()` takes: answers as by hand, or one sentence."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from eager_cases import KEEP, greedy, logits_by_hand, loop, make_answering_model, new_tokens, prompt
from tiny_llava import make_config, make_model
from transformers import TextIteratorStreamer

from vtexport.errors import InputError, UsageError
from vtexport.pruning import apply

INSIDE = [("fastv", 32), ("pyramiddrop", 30), ("vitcop", 20), ("nuwa", 30)]


@pytest.fixture
def model() -> Any:
    return make_answering_model(num_hidden_layers=4)


@pytest.mark.parametrize("images", [1, 2])
def test_every_beam_scores_as_by_hand(model: Any, images: int) -> None:
    given = prompt(images=images, rows=2)
    given["pixel_values"][images:] = given["pixel_values"][:images].flip(-1)
    settings = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, "return_dict_in_generate": True}
    with apply(model, method="uniform", keep=KEEP):
        found = model.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None, **settings)
    before = given["input_ids"].shape[1]
    for number, (ids, score) in enumerate(zip(found.sequences, found.sequences_scores, strict=True)):
        row = number // 2
        pixels = given["pixel_values"][row * images : (row + 1) * images]
        likely = logits_by_hand(model, ids, pixels).log_softmax(-1)[-6:-1]
        expected = likely.gather(1, ids[before:, None]).mean()
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)


def test_several_answers_to_a_prompt_see_its_own_images(model: Any) -> None:
    given = prompt(images=2, rows=2)
    given["pixel_values"][2:] = given["pixel_values"][:2].flip(-1)
    with apply(model, method="uniform", keep=KEEP):
        found = new_tokens(model, given, num_return_sequences=2, do_sample=True, top_k=1)
    expected = [greedy(model, given["input_ids"][0], given["pixel_values"][2 * row : 2 * row + 2], 8) for row in (0, 1)]
    assert found == [expected[0], expected[0], expected[1], expected[1]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": "another"},
        {"assistant_model": "itself"},
        {"stopping_criteria": []},
        {"guidance_scale": 1.0},
    ],
    ids=str,
)
def test_ways_to_the_same_greedy_answer(model: Any, settings: dict[str, Any]) -> None:
    given = prompt()
    if "assistant_model" in settings:
        other = make_model(make_config(num_hidden_layers=1), seed=3)
        settings = {"assistant_model": other if settings["assistant_model"] == "another" else model}
    with apply(model, method="uniform", keep=KEEP):
        found = new_tokens(model, given, **settings)
        assert found == new_tokens(model, given, **settings), "a second call"
    assert found == [greedy(model, given["input_ids"][0], given["pixel_values"], 8)]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_answer_like_single_ones(model: Any, settings: dict[str, Any], side: str) -> None:
    first, second = prompt(), prompt(skip=1)
    pad = torch.tensor([[0]])

    def padded(name: str) -> torch.Tensor:
        parts = (pad, second[name]) if side == "left" else (second[name], pad)
        return torch.cat([first[name], torch.cat(parts, dim=1)])

    both = {name: padded(name) for name in ("input_ids", "attention_mask")}
    both["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    with apply(model, method="uniform", keep=KEEP):
        if side == "left":
            found = new_tokens(model, both, **settings)
            assert found == new_tokens(model, first, **settings) + new_tokens(model, second, **settings)
        else:  # as in scoring: the rows of each prompt, with those of its padding behind them
            with torch.no_grad():
                rows = model(**both).logits
            for row, single in enumerate((first, second)):
                expected = logits_by_hand(model, single["input_ids"][0], single["pixel_values"])
                torch.testing.assert_close(rows[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "keep"), [("uniform", KEEP), *INSIDE])
def test_guidance_by_a_negative_prompt(model: Any, method: str, keep: int) -> None:
    """The unguided branch is text alone, on a cache of its own, between the passes of the guided one."""
    given, negative = prompt(), torch.tensor([[1, 20, 60]])
    tokens: list[int] = []
    with apply(model, method=method, keep=keep), torch.no_grad():
        found = new_tokens(model, given, 6, guidance_scale=1.5, negative_prompt_ids=negative)
        outputs = model(**given)
        for _ in range(6):
            text = torch.cat([negative, torch.tensor([tokens], dtype=torch.long)], dim=1)
            free = model(input_ids=text).logits[0, -1].log_softmax(-1)
            guided = outputs.logits[0, -1].log_softmax(-1)
            tokens.append(int((1.5 * (guided - free) + free).argmax()))
            outputs = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=outputs.past_key_values)
    assert found == [tokens]


def test_what_generate_returns_beside_tokens(model: Any) -> None:
    model.set_attn_implementation("eager")
    wanted = ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")
    given = prompt()
    with apply(model, method="fastv", keep=32) as applied:
        found = model.generate(**given, max_new_tokens=3, eos_token_id=None, **dict.fromkeys(wanted, True))
    length = given["input_ids"].shape[1]
    left = length - 64 + applied.schedule.steps[0].keep
    layer = applied.schedule.steps[0].layer
    rows = [length if number < layer else left for number in range(4)]
    assert [tuple(each.shape[-2:]) for each in found.attentions[0]] == [(count, count) for count in rows]
    assert [tuple(each.shape[-2:]) for each in found.attentions[2]] == [(1, count + 2) for count in rows]
    assert found.hidden_states[0][-1].shape[1] == left
    assert len(found.scores) == len(found.logits) == 3


def test_a_streamer_and_a_thread(model: Any) -> None:
    class Words:
        def decode(self, tokens: list[int], **options: Any) -> str:
            return "".join(f"{int(token)} " for token in tokens)

    given = prompt()
    with apply(model, method="fastv", keep=32):
        expected = new_tokens(model, given)[0]
        streamer = TextIteratorStreamer(Words(), skip_prompt=True)
        run = threading.Thread(target=new_tokens, args=(model, given), kwargs={"streamer": streamer})
        run.start()
        text = "".join(streamer)
        run.join()
    assert [int(word) for word in text.split()] == expected


@pytest.mark.parametrize(("method", "keep"), [("prunesid", 16), ("pyramiddrop", 30)])
def test_threads_at_once(model: Any, method: str, keep: int) -> None:
    prompts = [prompt(), prompt(skip=1)]
    with apply(model, method=method, keep=keep):
        expected = [new_tokens(model, given) for given in prompts]
        found: list[list[Any]] = [[], []]

        def ask(number: int) -> None:
            for _ in range(3):
                found[number].append(new_tokens(model, prompts[number]))

        runs = [threading.Thread(target=ask, args=(number,)) for number in (0, 1)]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
    assert found == [[each] * 3 for each in expected]


def test_a_compiled_language_model() -> None:
    """Compiled before it is pruned, it is pruned all the same, and answers as before when that ends."""
    given, model = prompt(), make_model(make_config(num_hidden_layers=2))
    with torch.no_grad():
        with apply(model, method="fastv", keep=40):
            expected = model(**given).logits
        model.model.language_model.compile(backend="eager")
        plain = model(**given).logits
        with apply(model, method="fastv", keep=40):
            torch.testing.assert_close(model(**given).logits, expected)
        torch.testing.assert_close(model(**given).logits, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model: Any, dtype: torch.dtype) -> None:
    given, half = prompt(), model.to(dtype)
    with apply(half, method="uniform", keep=KEEP):
        found = new_tokens(half, given)
        assert found == [loop(half, given)]
        assert found == new_tokens(half, {**given, "pixel_values": given["pixel_values"].to(dtype)})


def test_position_ids_of_the_callers_own(model: Any) -> None:
    """A prompt that starts at position 5 answers as from 0: rotary positions are relative."""
    given = prompt(rows=2)
    places = torch.arange(given["input_ids"].shape[1])[None]
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        expected, found = model(**given).logits, new_tokens(model, given)
        torch.testing.assert_close(model(**given, position_ids=places).logits, expected)
        torch.testing.assert_close(model(**given, position_ids=places + 5).logits, expected, rtol=1e-4, atol=1e-4)
        assert new_tokens(model, given, position_ids=(places + 5).expand(2, -1)) == found


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prefill_chunk_size": 16}, "not in chunks .prefill_chunk_size=16."),
    ({"cache_implementation": "paged"}, "continuous batching takes token ids alone"),
    ({"image_sizes": torch.tensor([[112, 112]])}, "leave image_sizes out"),
    ({"vision_feature_layer": -1}, "vision_feature_layer=-2 from its configuration, not '-1'"),
    ({"vision_feature_select_strategy": "full"}, "='default' from its configuration, not 'full'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=str)
def test_what_generate_cannot_do_is_refused(model: Any, settings: dict[str, Any], message: str) -> None:
    with apply(model, method="uniform", keep=KEEP), pytest.raises(UsageError, match=message):
        new_tokens(model, prompt(), **settings)


@pytest.mark.parametrize(("method", "keep"), INSIDE)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "one prompt at a time, not 3 beams or answers"),
        ({"num_return_sequences": 2, "do_sample": True}, "not 2 beams or answers"),
        ({"use_cache": False}, "once for an answer, .*use use_cache=True"),
        ({"prompt_lookup_num_tokens": 3}, "leave out assistant_model and prompt_lookup_num_tokens"),
    ],
)
def test_what_steps_cannot_do_is_refused(
    model: Any, method: str, keep: int, settings: dict[str, Any], message: str
) -> None:
    with apply(model, method=method, keep=keep):
        with pytest.raises(UsageError, match=f"{method} prunes inside the language model .*{message}"):
            new_tokens(model, prompt(), **settings)
        text = {"input_ids": torch.tensor([[1, 20, 21]])}
        assert new_tokens(model, text, 3, **settings), "text alone is not pruned"


def test_images_and_placeholders_that_do_not_fit(model: Any) -> None:
    one, two = prompt(), prompt(images=2)
    length = two["input_ids"].shape[1] - one["input_ids"].shape[1]
    ragged = torch.cat([two["input_ids"], torch.nn.functional.pad(one["input_ids"], (length, 0))])
    pixels = torch.cat([two["pixel_values"], one["pixel_values"]])
    apart = torch.cat([one["input_ids"][:, :10], torch.tensor([[77]]), one["input_ids"][:, 10:]], dim=1)
    with apply(model, method="uniform", keep=KEEP):
        with pytest.raises(InputError, match=r"3 images of 64 visual tokens do not fit .*\[128, 64\]"):
            new_tokens(model, {"input_ids": ragged, "pixel_values": pixels})
        with pytest.raises(InputError, match=r"3 images .*\[128, 64\]"):
            new_tokens(model, {"input_ids": ragged, "pixel_values": pixels}, num_beams=2)
        with pytest.raises(InputError, match=r"0 images .*\[64\]"):
            model(input_ids=one["input_ids"], pixel_values=one["pixel_values"][:0])
        with pytest.raises(InputError, match="64 placeholders of an image do not stand side by side"):
            model(input_ids=apart, pixel_values=one["pixel_values"])


def test_other_forms_of_the_prompt(model: Any) -> None:
    given = prompt()
    embeds = model.get_input_embeddings()(given["input_ids"]).detach()
    with apply(model, method="uniform", keep=KEEP):
        with pytest.raises(UsageError, match="takes images with input_ids"):
            model.generate(inputs_embeds=embeds, pixel_values=given["pixel_values"], max_new_tokens=2)
        with pytest.raises(UsageError, match="input_ids or inputs_embeds, not both"):
            model(**given, inputs_embeds=embeds)
        encoded = {"image": model.get_image_features(given["pixel_values"])}
        with pytest.raises(UsageError, match="give pixel_values, not mm_encoder_outputs"):
            model(input_ids=given["input_ids"], mm_encoder_outputs=encoded)
        with pytest.raises(UsageError, match=r"position_ids as \[1, 73\], .* not \[1, 5\]"):
            model(**given, position_ids=torch.arange(5)[None])


@pytest.mark.parametrize(("method", "keep"), [("uniform", KEEP), ("fastv", 32)])
def test_an_exception_inside_generate_leaves_the_model_as_it_was(model: Any, method: str, keep: int) -> None:
    class Stop(Exception):  # noqa: N818 (it is none)
        pass

    def stop(ids: Any, scores: Any) -> Any:
        raise Stop

    given = prompt()
    untouched, attributes = new_tokens(model, given), set(vars(model))
    with pytest.raises(Stop), apply(model, method=method, keep=keep):
        new_tokens(model, given, stopping_criteria=[stop])
    assert new_tokens(model, given) == untouched
    assert set(vars(model)) == attributes
    assert "forward" not in vars(model.model)
    assert not any(layer._forward_pre_hooks for layer in model.model.language_model.layers)


def test_wrappers_of_others(model: Any) -> None:
    """Before `apply`: they come back. After it: they stay, and pass through what is no longer pruned."""
    given = prompt()
    untouched = new_tokens(model, given)
    own = model.model.forward
    before = functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs))
    model.model.forward = before
    with apply(model, method="uniform", keep=KEEP):
        assert new_tokens(model, given) != untouched
    assert model.model.forward is before
    applied = apply(model, method="fastv", keep=32)
    expected = new_tokens(model, given)
    for module in (model, model.model):
        inner = module.forward
        module.forward = functools.wraps(inner)(lambda *args, inner=inner, **kwargs: inner(*args, **kwargs))
    assert new_tokens(model, given) == expected != untouched
    applied.remove()
    assert new_tokens(model, given) == untouched
    with apply(model, method="uniform", keep=KEEP):
        assert new_tokens(model, given) == [greedy(model, given["input_ids"][0], given["pixel_values"], 8)]
