"""Bundles answer as transformers' `generate()` does with the same generation configuration, pruned and unpruned.

The bundles are built once; their manifests' settings are replaced in memory. What a build reads of the files is the
subject of `processing/test_generation.py`, and one build at the end goes the whole way.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image
from test_parity import PROMPT, load, processor, pytorch_inputs
from tiny_llava import PHOTO

from vtexport.build import build
from vtexport.bundle.manifest import Generation
from vtexport.bundle.reader import open_bundle
from vtexport.pruning import apply
from vtexport.runtime.pipeline import Pipeline

NEW_TOKENS, EOS = 14, 2
PLANS = ["none", "prunesid-16"]
NAMES = ["repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "bad_words_ids", "min_new_tokens"]
FURTHER = [
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "sequence_bias", "min_length", "forced_eos_token_id",
    "exponential_decay_length_penalty", "begin_suppress_tokens", "stop_strings",
]  # fmt: skip

# Without, answers repeat neither themselves nor the prompt, and nothing would be banned.
BESIDE = {
    "no_repeat_ngram_size": {"repetition_penalty": 0.4},
    "encoder_no_repeat_ngram_size": {"encoder_repetition_penalty": 5.0},
}


class Both:
    """One plan of the bundle beside the PyTorch model under the same pruning."""

    def __init__(self, plan: str, checkpoint: Path, bundle: Path):
        self._pipeline = Pipeline.open(bundle, plan)
        self._visual = self._pipeline.encode(PHOTO)
        self._model, self._inputs = load(checkpoint), pytorch_inputs(checkpoint, Image.open(PHOTO))
        self._tokenizer = processor(checkpoint).tokenizer
        self._method, _, keep = plan.partition("-")
        self._keep = int(keep) if keep else None
        self.greedy = self.pytorch(EOS)

    @torch.no_grad()
    def pytorch(self, eos: int, **settings: Any) -> list[int]:
        pruned = apply(self._model, method=self._method, keep=self._keep) if self._keep else contextlib.nullcontext()
        with pruned:
            tokens = self._model.generate(
                **self._inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=0,
                tokenizer=self._tokenizer, **settings,
            )  # fmt: skip
        return tokens[0, self._inputs["input_ids"].shape[1] :].tolist()

    def plain(self, eos: int) -> list[int]:
        """The greedy answer with this end token, of the PyTorch model."""
        return self.greedy[: self.greedy.index(eos) + 1] if eos in self.greedy else self.greedy

    def bundle(self, eos: int, asked: dict[str, Any] | None = None, **settings: Any) -> list[int]:
        manifest = self._pipeline.bundle.manifest
        if isinstance(settings.get("forced_eos_token_id"), int):
            settings["forced_eos_token_id"] = [settings["forced_eos_token_id"]]
        before = manifest.generation, manifest.text.eos_token_ids
        manifest.generation, manifest.text.eos_token_ids = msgspec.convert(settings, Generation), [eos]
        try:
            answer = self._pipeline.generate(self._visual, PROMPT, max_new_tokens=NEW_TOKENS, **(asked or {}))
        finally:
            manifest.generation, manifest.text.eos_token_ids = before
        return answer.token_ids

    def settings(self, name: str) -> tuple[int, Any]:
        """The end token and a value with which the answer becomes another one."""
        said = self.greedy
        prompt = self._inputs["input_ids"].shape[1]
        early = next(token for token in said[3:] if token not in said[:3])  # would end the answer
        text = self._tokenizer.decode(said[:9])
        values: dict[str, Any] = {
            "repetition_penalty": 0.4,  # below 1 it favours what was said: these answers repeat nothing
            "encoder_repetition_penalty": 5.0,
            "no_repeat_ngram_size": 2,
            "encoder_no_repeat_ngram_size": 1,
            "suppress_tokens": [said[0], said[5]],
            "begin_suppress_tokens": [said[0]],
            "bad_words_ids": [[said[1]], [said[3], said[4]]],
            "sequence_bias": [[[said[0]], -5.0], [said[1:3], -4.0]],
            "min_new_tokens": 9,
            "min_length": prompt + 8,
            "forced_eos_token_id": EOS,
            "exponential_decay_length_penalty": [2, 1.4],
            "stop_strings": [next(each for each in reversed(text) if each.isascii() and each.isalnum())],
        }
        return early if name in {"min_new_tokens", "min_length"} else EOS, values[name]


@pytest.fixture(scope="module", params=PLANS)
def both(request: pytest.FixtureRequest, tiny_checkpoint: Path, eval_bundle: Path) -> Both:
    return Both(request.param, tiny_checkpoint, eval_bundle)


@pytest.mark.parametrize("name", NAMES + FURTHER)
def test_alone(name: str, both: Both) -> None:
    eos, value = both.settings(name)
    beside = BESIDE.get(name, {})
    wanted = both.pytorch(eos, **beside, **{name: value})
    assert both.bundle(eos, **beside, **{name: value}) == wanted
    assert wanted != (both.pytorch(eos, **beside) if beside else both.plain(eos)), "it changes nothing"
    if name != "stop_strings":
        assert both.bundle(eos, {"logits_processors": False}, **{name: value}) == both.plain(eos)


@pytest.mark.parametrize(("first", "second"), itertools.combinations(NAMES, 2))
def test_in_pairs(first: str, second: str, both: Both) -> None:
    eos = both.settings("min_new_tokens")[0] if "min_new_tokens" in (first, second) else EOS
    settings = {name: both.settings(name)[1] for name in (first, second)}
    assert both.bundle(eos, **settings) == both.pytorch(eos, **settings)


def test_all_together(both: Both) -> None:
    settings = {name: both.settings(name)[1] for name in (*NAMES, *FURTHER) if name != "stop_strings"}
    assert both.bundle(EOS, **settings) == both.pytorch(EOS, **settings)


def test_what_a_build_reads_is_what_the_bundle_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`generate()` without arguments for it."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    settings = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 1, "do_sample": True, "max_new_tokens": 7}
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    bundle = build(str(folder), tmp_path / "bundle", method="none").folder
    assert open_bundle(bundle).manifest.generation == msgspec.convert(settings, Generation)
    inputs = pytorch_inputs(folder, Image.open(PHOTO))
    tokens = load(folder).generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    pipeline = Pipeline.open(bundle)
    assert pipeline.generate(PHOTO, PROMPT, max_new_tokens=7).token_ids == tokens
    sampled = [pipeline.generate(PHOTO, PROMPT, sampling="checkpoint", seed=seed).token_ids for seed in range(3)]
    assert {len(each) for each in sampled} == {7}
    assert len({tuple(each) for each in [*sampled, tokens]}) > 2
