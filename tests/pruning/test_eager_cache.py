"""Caches of a pruned model: a second turn, a text in front, loops of one's own, crops, resets and copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from eager_cases import KEEP, greedy, logits_by_hand, loop, make_answering_model, new_tokens, prompt, set_positions
from transformers import DynamicCache, StaticCache

from vtexport.errors import UsageError
from vtexport.pruning import apply

EVERY = [("uniform", KEEP), ("fastv", 32), ("pyramiddrop", 30), ("vitcop", 20)]
NEXT = torch.tensor([[40, 41, 42]])


@pytest.fixture
def model() -> Any:
    return make_answering_model(num_hidden_layers=4)


@pytest.fixture(params=["contiguous", "original"])
def both_positions(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of counting the kept tokens of uniform."""
    set_positions(request.param, monkeypatch)


def new_cache(model: Any, kind: str = "dynamic") -> Any:
    config = model.config.get_text_config()
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=120)


@pytest.mark.parametrize(("method", "keep"), EVERY)
@pytest.mark.parametrize("masked", [False, True])
def test_a_loop_of_ones_own(model: Any, method: str, keep: int, masked: bool) -> None:
    check_loop(model, method, keep, masked)


@pytest.mark.usefixtures("both_positions")
def test_a_loop_with_positions_of_both_kinds(model: Any) -> None:
    check_loop(model, "uniform", KEEP, False)
    check_loop(model, "uniform", KEEP, True)


def check_loop(model: Any, method: str, keep: int, masked: bool) -> None:
    def mask(length: int) -> torch.Tensor | None:
        return torch.ones(1, length, dtype=torch.long) if masked else None

    given = prompt()
    with apply(model, method=method, keep=keep):
        assert [loop(model, given, mask=mask)] == new_tokens(model, given)


@pytest.mark.parametrize(("method", "keep"), EVERY)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_second_turn_on_one_cache(model: Any, method: str, keep: int, kind: str) -> None:
    check_second_turn(model, method, keep, kind)


@pytest.mark.usefixtures("both_positions")
def test_a_second_turn_with_positions_of_both_kinds(model: Any) -> None:
    check_second_turn(model, "uniform", KEEP, "dynamic")


def check_second_turn(model: Any, method: str, keep: int, kind: str) -> None:
    """The whole sequence, or its new tokens alone: as if every token had come by itself."""
    given = prompt()
    with apply(model, method=method, keep=keep), torch.no_grad():
        cache = new_cache(model, kind)
        first = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None, past_key_values=cache)
        whole = torch.cat([first, NEXT], dim=1)
        single = new_cache(model)
        outputs = model(**given, past_key_values=single)
        for token in whole[0, given["input_ids"].shape[1] :]:
            outputs = model(input_ids=token[None, None], past_key_values=single)
        expected = [int(outputs.logits[0, -1].argmax())]
        for _ in range(3):
            outputs = model(input_ids=torch.tensor([expected[-1:]]), past_key_values=single)
            expected.append(int(outputs.logits[0, -1].argmax()))
        kept = copy.deepcopy(cache)
        assert new_tokens(model, {"input_ids": whole}, 4, past_key_values=cache) == [expected]
        # The last token of the first answer is in no cache yet.
        behind = {"input_ids": whole[:, first.shape[1] - 1 :], "attention_mask": torch.ones_like(whole)}
        assert new_tokens(model, behind, 4, past_key_values=kept) == [expected]


def test_a_second_turn_answers_like_the_whole_conversation(model: Any) -> None:
    given = prompt()
    with apply(model, method="uniform", keep=KEEP):
        cache = new_cache(model)
        first = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None, past_key_values=cache)
        whole = torch.cat([first, NEXT], dim=1)
        found = new_tokens(model, {"input_ids": whole}, 4, past_key_values=cache)
    assert found == [greedy(model, whole[0], given["pixel_values"], 4)]


@pytest.mark.parametrize("masked", [False, True])
def test_text_in_front_of_the_image_from_a_cache(model: Any, masked: bool) -> None:
    given, text = prompt(), torch.tensor([[1, 50, 51]])
    whole = torch.cat([text, given["input_ids"]], dim=1)
    expected = logits_by_hand(model, whole[0], given["pixel_values"])
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        caches = [new_cache(model) for _ in range(2)]
        for cache in caches:
            model(input_ids=text, past_key_values=cache)
        behind = {**given, "attention_mask": torch.ones_like(whole) if masked else None}
        found = model(**behind, past_key_values=caches[0]).logits[0]
        torch.testing.assert_close(found, expected[3:], rtol=1e-4, atol=1e-4)
        answer = new_tokens(model, {**behind, "input_ids": whole}, 4, past_key_values=caches[1])
    assert answer == [greedy(model, whole[0], given["pixel_values"], 4)]


@pytest.mark.parametrize(("method", "keep"), EVERY[:2])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_that_was_reset_is_new(model: Any, method: str, keep: int, kind: str) -> None:
    given = prompt()
    with apply(model, method=method, keep=keep):
        cache = new_cache(model, kind)
        first = new_tokens(model, given, past_key_values=cache)
        cache.reset()
        assert new_tokens(model, given, past_key_values=cache) == first == new_tokens(model, given)


@pytest.mark.parametrize(("method", "keep"), EVERY[:2])
def test_cropped_caches(model: Any, method: str, keep: int) -> None:
    given, token = prompt(), torch.tensor([[5]])
    with apply(model, method=method, keep=keep), torch.no_grad():

        def cropped(rows: int) -> Any:
            cache = new_cache(model)
            model(**given, past_key_values=cache)
            cache.crop(rows - cache.get_seq_length())
            return cache

        full = new_cache(model)
        model(**given, past_key_values=full)
        longer = full.get_seq_length()
        # Two tokens less at the end: as if the prompt had been shorter by them.
        shorter = {name: value if name == "pixel_values" else value[:, :-2] for name, value in given.items()}
        if method == "uniform":  # steps choose by the last token, which is another one then
            cache = new_cache(model)
            model(**shorter, past_key_values=cache)
            expected = model(input_ids=token, past_key_values=cache).logits
            found = model(input_ids=token, past_key_values=cropped(longer - 2)).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            # Three tokens are text in front of the image.
            found = model(input_ids=token, past_key_values=cropped(3)).logits
            expected = model(input_ids=torch.cat([given["input_ids"][:, :3], token], dim=1)).logits[:, -1:]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(UsageError, match="cropped to 3 rows, into the images"):
                model(input_ids=token, past_key_values=cropped(3))
        with pytest.raises(UsageError, match="cropped to 10 rows, into the images"):
            model(input_ids=token, past_key_values=cropped(10))


def test_a_crop_to_a_length_counts_the_unpruned_sequence(model: Any) -> None:
    """As assisted generation of older transformers asks for it."""
    given = prompt()
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        cache = new_cache(model)
        model(**given, past_key_values=cache)
        calls: list[int] = []

        class Older(DynamicCache):
            def crop(self, size: int) -> None:
                calls.append(size)

        cache.__class__ = Older
        cache.crop(given["input_ids"].shape[1] - 2)
        cache.crop(-1)
        with pytest.raises(UsageError, match="of 68 tokens cannot be cropped to 30"):
            cache.crop(30)
    assert calls == [4 + KEEP + 5 - 2, -1]


def test_rows_repeated_behind_the_prompt(model: Any) -> None:
    given = prompt()
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        cache = new_cache(model)
        model(**given, past_key_values=cache)
        single = model(input_ids=torch.tensor([[5]]), past_key_values=copy.deepcopy(cache)).logits
        cache.batch_repeat_interleave(2)
        both = model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache).logits
        torch.testing.assert_close(both[:1], single, rtol=1e-4, atol=1e-4)


def test_rows_of_different_padding_cannot_be_repeated(model: Any) -> None:
    given = prompt(rows=2)
    given["attention_mask"][1, 0] = 0
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        cache = new_cache(model)
        model(**given, past_key_values=cache)
        cache.batch_repeat_interleave(2)
        with pytest.raises(UsageError, match="filled with 2 prompts of different padding and goes on with 4"):
            model(input_ids=torch.tensor([[5]] * 4), past_key_values=cache)


def test_a_cache_of_another_apply(model: Any) -> None:
    given, cache = prompt(), new_cache(model)
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        model(**given, past_key_values=cache)
    with apply(model, method="none"), pytest.raises(UsageError, match="filled under another apply"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_what_does_not_fit_the_cache_is_refused(model: Any) -> None:
    given, token = prompt(), torch.tensor([[5]])
    length = given["input_ids"].shape[1]
    with apply(model, method="uniform", keep=KEEP), torch.no_grad():
        cache = new_cache(model)
        model(**given, past_key_values=cache)
        for mask in (torch.ones(1, 19), torch.ones(1, 1, 1, 19), {"full_attention": None}):
            with pytest.raises(UsageError, match=rf"attention_mask as .* here \[1, {length + 1}\], not"):
                model(input_ids=token, past_key_values=cache, attention_mask=mask)
        with pytest.raises(UsageError, match=rf"stands for {length} tokens .* position ids are {length} to {length}"):
            model(input_ids=token, past_key_values=cache, position_ids=torch.tensor([[18]]))
        with pytest.raises(UsageError, match="in the first forward pass of a cache"):
            model(**given, past_key_values=cache)
        with pytest.raises(UsageError, match="not in chunks"):
            new_tokens(model, {"input_ids": torch.cat([given["input_ids"], NEXT], dim=1)}, past_key_values=cache,
                       prefill_chunk_size=2)  # fmt: skip
        with pytest.raises(UsageError, match=r"\[1, 73\], not \[1, 19\]"):
            model(**{**given, "attention_mask": torch.ones(1, 19)})
    with apply(model, method="fastv", keep=32), torch.no_grad():
        cache = new_cache(model)
        model(input_ids=torch.tensor([[1, 20]]), past_key_values=cache)
        with pytest.raises(UsageError, match="with an empty cache, not 1 with 1 images behind 2 tokens"):
            model(**{**given, "attention_mask": None}, past_key_values=cache)
