from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from vtexport.bundle.manifest import Generation
from vtexport.errors import UsageError
from vtexport.runtime.sampling import Decoding, Sampler, TokenChooser

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def test_greedy_takes_the_lower_id_on_ties() -> None:
    assert Sampler()(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(temperature=1.0, seed=1)
    counts = np.bincount([sampler(LOGITS) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.15, 0.1], atol=0.015)


def test_temperature_sharpens() -> None:
    sampler = Sampler(temperature=0.5, seed=1)
    counts = np.bincount([sampler(LOGITS) for _ in range(20_000)], minlength=4) / 20_000
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(counts, squares / squares.sum(), atol=0.015)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.4, {0}), (0.6, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_nucleus(top_p: float, allowed: set[int]) -> None:
    sampler = Sampler(temperature=1.0, top_p=top_p, seed=3)
    assert {sampler(LOGITS) for _ in range(2000)} == allowed


def test_same_seed_same_tokens() -> None:
    first, second, other = (Sampler(1.0, seed=seed) for seed in (7, 7, 8))
    draws = [[sampler(LOGITS) for _ in range(50)] for sampler in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    st.floats(1e-3, 1e3),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**32),
)
def test_always_a_token(logits: list[float], temperature: float, top_p: float, seed: int) -> None:
    assert 0 <= Sampler(temperature, top_p, seed)(np.array(logits, np.float32)) < len(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler(**options)  # type: ignore[arg-type]


def test_banned_tokens_are_never_drawn() -> None:
    sampler = Sampler(temperature=1.0, seed=4)
    logits = np.where(np.arange(4) == 1, np.float32(-np.inf), LOGITS)
    assert {sampler(logits) for _ in range(500)} == {0, 2, 3}
    with pytest.raises(UsageError, match=r"leave no token to sample; .*--no-logits-processors"):
        sampler(np.full(4, -np.inf, np.float32))


PROMPT, EOS = np.array([1, 5, 5, 3]), [2]
SAMPLES = Generation(do_sample=True, temperature=0.5, top_k=2, max_new_tokens=7)


def chooser(settings: Generation, new_tokens: int = 6, **asked: Any) -> TokenChooser:
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(8)}, "w0"))
    return Decoding(settings, **asked).start(PROMPT, new_tokens, EOS, len(FLAT), tokenizer)


FLAT = np.array([0.0, 0.1, -9, 0.3, 0.2, 0.4, -9, -9], np.float32)


def test_greedy_with_the_checkpoints_processors_is_the_default() -> None:
    assert chooser(Generation())(FLAT) == 5
    assert chooser(SAMPLES)(FLAT) == 5
    assert chooser(Generation(suppress_tokens=[5]))(FLAT) == 3
    assert chooser(Generation(suppress_tokens=[5]), logits_processors=False)(FLAT) == 5
    assert chooser(Generation(suppress_tokens=[5]), sampling="checkpoint")(FLAT) == 3
    choose = chooser(Generation(no_repeat_ngram_size=1))
    assert [choose(FLAT) for _ in range(3)] == [4, 0, 2]  # the prompt has 1, 3 and 5


def test_logits_stay_as_they_are() -> None:
    logits = FLAT.copy()
    chooser(Generation(suppress_tokens=[5], repetition_penalty=3.0), sampling="checkpoint")(logits)
    np.testing.assert_array_equal(logits, FLAT)


@pytest.mark.parametrize(
    ("settings", "asked", "drawn"),
    [
        (SAMPLES, {"sampling": "checkpoint"}, {3, 5}),
        (SAMPLES, {"sampling": "checkpoint", "temperature": 0}, {5}),
        (SAMPLES, {"sampling": "checkpoint", "temperature": 0.0, "top_p": 0.9}, {5}),
        (SAMPLES, {"sampling": "checkpoint", "top_p": 0.1}, {5}),
        (SAMPLES, {"temperature": 1.0}, {0, 1, 3, 4, 5}),
        (SAMPLES, {"top_p": 0.5}, {5}),
        (Generation(top_k=2), {"sampling": "checkpoint"}, {5}),
        (Generation(top_k=2), {"sampling": "checkpoint", "temperature": 1.0}, {3, 5}),
        (Generation(top_k=2), {"temperature": 1.0}, {0, 1, 3, 4, 5}),
    ],
)
def test_arguments_come_before_the_checkpoint(settings: Generation, asked: dict[str, Any], drawn: set[int]) -> None:
    seen = {chooser(settings, seed=seed, **asked)(FLAT) for seed in range(120)}
    assert seen == drawn


def test_the_checkpoints_sampling_is_repeatable() -> None:
    first, second = (chooser(SAMPLES, sampling="checkpoint", seed=3) for _ in range(2))
    assert [first(FLAT) for _ in range(6)] == [second(FLAT) for _ in range(6)]


@pytest.mark.parametrize(
    ("settings", "asked", "count"),
    [
        ({}, {}, 128),
        ({"max_new_tokens": 5, "max_length": 300}, {}, 128),
        ({"max_new_tokens": 5, "max_length": 300}, {"sampling": "checkpoint"}, 5),
        ({"max_length": 300}, {"sampling": "checkpoint"}, 200),
        ({"max_length": 101}, {"sampling": "checkpoint"}, 1),
        ({"max_length": 20}, {"sampling": "checkpoint", "max_new_tokens": 9}, 9),
        ({}, {"sampling": "checkpoint"}, 128),
        ({"max_new_tokens": 5}, {"sampling": "checkpoint", "max_new_tokens": 9}, 9),
    ],
)
def test_how_long_an_answer_to_100_tokens_may_be(settings: dict[str, Any], asked: dict[str, Any], count: int) -> None:
    assert Decoding(Generation(**settings), **asked).new_tokens(100) == count


def test_a_prompt_as_long_as_the_checkpoint_allows() -> None:
    decoding = Decoding(Generation(max_length=100), sampling="checkpoint")
    with pytest.raises(
        UsageError, match=r"max_length is 100 and the unpruned prompt has 100 tokens; .*--max-new-tokens"
    ):
        decoding.new_tokens(100)


def test_why_an_answer_ends() -> None:
    def logits(token: int) -> np.ndarray:
        return np.where(np.arange(len(FLAT)) == token, np.float32(1), np.float32(0))

    choose = chooser(Generation(stop_strings=["w4 w6"]), new_tokens=3)
    assert (choose(logits(7)), choose.finish_reason) == (7, None)
    assert (choose(logits(2)), choose.finish_reason) == (2, "eos")
    choose = chooser(Generation(stop_strings=["w4 w6"]), new_tokens=3, logits_processors=False)
    assert (choose(logits(4)), choose.finish_reason) == (4, None)
    assert (choose(logits(6)), choose.finish_reason) == (6, "stop_string")
    choose = chooser(Generation(), new_tokens=2)
    assert (choose(logits(2 + 1)), choose.finish_reason) == (3, None)
    assert (choose(logits(3)), choose.finish_reason) == (3, "length")


def test_end_tokens_wait_for_the_least_length() -> None:
    ends = np.where(np.arange(len(FLAT)) == 2, np.float32(9), FLAT)
    choose = chooser(Generation(min_new_tokens=3))
    assert [choose(ends) for _ in range(4)] == [5, 5, 5, 2]
    choose = chooser(Generation(min_length=6))  # the prompt's four included
    assert [choose(ends) for _ in range(3)] == [5, 5, 2]
    choose = chooser(Generation(forced_eos_token_id=[2]), new_tokens=3)
    assert [choose(FLAT) for _ in range(3)] == [5, 5, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "beam"}, "sampling is 'beam'; give greedy or checkpoint"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"temperature": -1}, "temperature is -1"),
        ({"sampling": "checkpoint", "temperature": "hot"}, "temperature is 'hot'"),
        ({"sampling": "checkpoint", "top_p": 0}, "top_p is 0"),
        ({"sampling": "checkpoint", "seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Decoding(SAMPLES, **options)
