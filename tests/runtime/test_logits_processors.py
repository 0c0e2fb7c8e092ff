"""Logits processors and warpers against transformers' own, alone, in pairs and all together."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from library_generation import library_processors, library_scores

from vtexport.bundle.manifest import Generation
from vtexport.runtime.logits_processors import make_processors, make_warpers
from vtexport.runtime.sampling import WarpedSampler

VOCABULARY, EOS = 40, [2, 7]
NEW_TOKENS = 6
ALONE: dict[str, list[Any]] = {
    "repetition_penalty": [1.3, 0.7, 5.0],
    "encoder_repetition_penalty": [1.3, 0.6],
    "no_repeat_ngram_size": [1, 2, 3, 30],
    "encoder_no_repeat_ngram_size": [1, 2, 4],
    "bad_words_ids": [[[3]], [[2], [5, 6], [6]], [[9, 8, 7], [8, 7], [7]], [[2], [7]]],
    "sequence_bias": [
        [[[3], -2.5], [[4], 2.0]],
        [[[5, 6], 3.0], [[6, 6], 1.5], [[6], -0.25], [[1, 5, 6], 10.0]],
        [[[5], 1.0], [[5], -4.0]],
    ],
    "min_length": [5, 14, 100],
    "min_new_tokens": [1, 3, 50],
    "forced_bos_token_id": [4],
    "forced_eos_token_id": [7, [2, 7]],
    "remove_invalid_values": [True],
    "exponential_decay_length_penalty": [[1, 1.5], [0, 1.01], [-3, 2.0]],
    "suppress_tokens": [[0, 1, 2, 39], [1000, 3]],
    "begin_suppress_tokens": [[5, 6, 7], [2]],
    "renormalize_logits": [True],
}
WARPERS: dict[str, list[Any]] = {
    "temperature": [0.3, 1.7, 0.01],
    "top_h": [0.1, 0.5, 0.97],  # 1 asks whether two sums of the same numbers are equal
    "top_k": [1, 5, 39, 1000],
    "top_p": [0.0, 0.1, 0.6, 0.95],
    "min_p": [0.0, 0.05, 0.5, 1.0],
    "typical_p": [0.1, 0.5, 0.9],
    "epsilon_cutoff": [0.001, 0.05, 0.9],
    "eta_cutoff": [0.001, 0.1, 0.9],
}


def ours(given: dict[str, Any]) -> Generation:
    """The manifest's form of these settings."""
    plain = dict(given)
    if isinstance(plain.get("forced_eos_token_id"), int):
        plain["forced_eos_token_id"] = [plain["forced_eos_token_id"]]
    return msgspec.convert(plain, Generation)


def histories(seed: int, prompt_tokens: int) -> list[tuple[list[int], list[list[int]]]]:
    """A prompt with placeholders in it, and its ids after 0 to NEW_TOKENS - 1 new tokens. Few ids, so they repeat."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 10, prompt_tokens + NEW_TOKENS).tolist()
    ids[2 : max(2, prompt_tokens - 3)] = [11] * max(0, prompt_tokens - 5)
    return [(ids[:prompt_tokens], [ids[: prompt_tokens + new] for new in range(NEW_TOKENS)])]


def assert_same(given: dict[str, Any], seed: int, prompt_tokens: int = 12) -> None:
    random = np.random.default_rng(seed)
    for prompt, continued in histories(seed, prompt_tokens):
        theirs = library_processors({**given, "eos_token_id": EOS}, prompt, NEW_TOKENS, VOCABULARY)
        processors = make_processors(ours(given), np.array(prompt), EOS, NEW_TOKENS, VOCABULARY)
        assert processors, "these settings change nothing"
        for ids in continued:
            logits = random.normal(0, 4, VOCABULARY).astype(np.float32)
            wanted = library_scores(theirs, ids, logits)
            if "exponential_decay_length_penalty" in given and np.isnan(wanted).any():
                continue  # earlier releases, where an end token is banned
            scores = logits.copy()
            for process in processors:
                scores = process(np.array(ids), scores)
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(wanted))
            np.testing.assert_allclose(scores, wanted, rtol=3e-7, atol=1e-6)
            assert np.argmax(scores) == np.argmax(wanted)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("prompt_tokens", [3, 12])
def test_each_alone(name: str, prompt_tokens: int) -> None:
    for value, seed in itertools.product(ALONE[name], range(4)):
        assert_same({name: value}, seed, prompt_tokens)


@pytest.mark.parametrize("given", [{}, {"begin_suppress_tokens": [5, 6]}, {"no_repeat_ngram_size": 2}])
def test_a_first_token_is_forced_behind_one_token_alone(given: dict[str, Any]) -> None:
    assert_same({"forced_bos_token_id": 4, **given}, seed=1, prompt_tokens=1)


@pytest.mark.parametrize("first", ALONE)
def test_in_pairs(first: str) -> None:
    for second in ALONE:
        if second <= first:
            continue
        for seed, (one, other) in enumerate(itertools.product(ALONE[first], ALONE[second])):
            assert_same({first: one, second: other}, seed)


@given(st.data())
@settings(max_examples=60)
def test_any_of_them_together(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(list(ALONE)), min_size=3, unique=True))
    chosen = {name: data.draw(st.sampled_from(ALONE[name])) for name in names}
    assert_same(chosen, data.draw(st.integers(0, 1000)), data.draw(st.integers(3, 20)))


def test_they_change_what_they_should() -> None:
    """The comparison would pass if nothing happened on either side."""
    random = np.random.default_rng(0)
    for name, values in ALONE.items():
        changed = 0
        for value, seed in itertools.product(values, range(6)):
            for prompt, continued in histories(seed, 12 if name != "forced_bos_token_id" else 1):
                processors = make_processors(ours({name: value}), np.array(prompt), EOS, NEW_TOKENS, VOCABULARY)
                for ids in continued:
                    logits = random.normal(0, 4, VOCABULARY).astype(np.float32)
                    logits[1] = np.nan if name == "remove_invalid_values" else logits[1]
                    scores = logits.copy()
                    for process in processors:
                        scores = process(np.array(ids), scores)
                    changed += not np.array_equal(scores, logits, equal_nan=True)
        assert changed, name


def test_invalid_values_are_removed_as_there() -> None:
    logits = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    theirs = library_processors({"remove_invalid_values": True, "eos_token_id": 2}, [0, 1], 4, 4)
    (process,) = make_processors(Generation(remove_invalid_values=True), np.array([0, 1]), [2], 4, 4)
    np.testing.assert_array_equal(process(np.array([0, 1]), logits.copy()), library_scores(theirs, [0, 1], logits))


def test_defaults_need_no_processor() -> None:
    assert make_processors(Generation(), np.arange(3), EOS, NEW_TOKENS, VOCABULARY) == []
    assert make_processors(Generation(do_sample=True, top_p=0.5), np.arange(3), EOS, NEW_TOKENS, VOCABULARY) == []


def probabilities(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()


def assert_same_distribution(given: dict[str, Any], seed: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, VOCABULARY).astype(np.float32)
    logits[random.integers(0, VOCABULARY, seed % 3)] = -np.inf  # as a processor may leave them
    theirs = library_processors(
        {"top_k": 0, **given, "do_sample": True, "eos_token_id": EOS}, [0, 1], NEW_TOKENS, VOCABULARY
    )
    wanted = library_scores(theirs, [0, 1], logits)
    sampler = WarpedSampler(make_warpers(ours({"top_k": 0, **given})), seed)
    scores = sampler.warped(logits)
    np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(wanted))
    np.testing.assert_allclose(probabilities(scores), probabilities(wanted), rtol=1e-5, atol=1e-9)
    assert not np.isneginf(scores[sampler(logits)])


@pytest.mark.parametrize("name", WARPERS)
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_each_warper_alone(name: str, spread: float) -> None:
    for value, seed in itertools.product(WARPERS[name], range(6)):
        assert_same_distribution({name: value}, seed, spread)


@pytest.mark.parametrize("first", WARPERS)
def test_warpers_in_pairs(first: str) -> None:
    for second in WARPERS:
        if second <= first:
            continue
        for seed, (one, other) in enumerate(itertools.product(WARPERS[first], WARPERS[second])):
            assert_same_distribution({first: one, second: other}, seed, 2.0)


def test_warpers_without_settings_are_transformers_defaults() -> None:
    """top_k is 50 where a checkpoint that samples says nothing."""
    logits = np.random.default_rng(3).normal(0, 2, 300).astype(np.float32)
    theirs = library_processors({"do_sample": True, "eos_token_id": EOS}, [0, 1], NEW_TOKENS, 300)
    wanted = library_scores(theirs, [0, 1], logits)
    scores = WarpedSampler(make_warpers(Generation()), 0).warped(logits)
    np.testing.assert_array_equal(scores, wanted)
    assert np.isfinite(scores).sum() == 50


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    sampler = WarpedSampler(make_warpers(Generation(top_k=3)), 5)
    counts = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, np.array([0.5, 0.25, 0.15, 0]) / 0.9, atol=0.015)
