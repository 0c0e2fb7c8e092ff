"""Stop strings end an answer where transformers' StopStringCriteria ends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_llava import text_files
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from vtexport.runtime.stop_strings import StopStrings

# Releases before it compare texts, so that parts of a character are never found.
BYTES = hasattr(StopStringCriteria, "_get_stop_string_matching_mode")


def is_text(tokenizer: Tokenizer, number: int) -> bool:
    return "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode([number], skip_special_tokens=False)


def llama(folder: Path) -> Path:
    """As Llama's: pieces with a mark for spaces, and bytes for what no piece has."""
    (folder / "tokenizer.json").write_text(json.dumps(text_files()["tokenizer.json"]))
    return folder / "tokenizer.json"


def gpt2(folder: Path) -> Path:
    """As GPT-2's: every byte a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "Ġt", "he", "Ġthe", "ab", "abc", "##", "end", "Ã©", "st", "op", "stop", "topper"]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>", "<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def words(folder: Path) -> Path:
    """Without a decoder: tokens are joined by spaces."""
    names = ["abcdef", "st", "op", "stop", "er", "the", "end", "?"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def found(tokenizer: Tokenizer, ids: list[int], random: np.random.Generator) -> str:
    """A piece of the text, which some of the ids complete."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    start = int(random.integers(0, max(1, len(text) - 8)))
    return text[start : start + int(random.integers(1, 7))].replace("\N{REPLACEMENT CHARACTER}", "")


@pytest.mark.parametrize("make", [llama, gpt2, words])
def test_every_position_as_there(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path)
    tokenizer, theirs = Tokenizer.from_file(str(path)), PreTrainedTokenizerFast(tokenizer_file=str(path))
    random = np.random.default_rng(1)
    known = [number for number in range(tokenizer.get_vocab_size()) if BYTES or is_text(tokenizer, number)]
    stopped = 0
    for _ in range(12):
        ids = random.choice(known, 40).tolist()
        strings = [string for string in (found(tokenizer, ids, random) for _ in range(3)) if string.strip()]
        strings.append("stop")
        wanted = StopStringCriteria(tokenizer=theirs, stop_strings=strings)
        stops = StopStrings(tokenizer, strings)
        for end in range(1, len(ids) + 1):
            expected = bool(wanted(torch.tensor([ids[:end]]), None)[0])
            assert stops(np.array(ids[:end])) == expected, (strings, ids[:end])
            stopped += expected
    assert stopped > 10


@pytest.mark.parametrize(
    ("tokens", "stops_there"),
    [
        (["st", "op"], True),
        (["stop"], True),
        (["s", "topper"], True),
        (["st", "op", "abc"], False),
        (["st", "Ġt", "op"], False),
        (["op"], False),
    ],
)
def test_overhanging_tokens(tokens: list[str], stops_there: bool, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(gpt2(tmp_path)))
    ids = np.array([tokenizer.token_to_id(token) for token in tokens])
    assert StopStrings(tokenizer, ["stop"])(ids) is stops_there


def test_a_character_of_several_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llama(tmp_path)))
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "你".encode()]
    stops = StopStrings(tokenizer, ["你"])
    assert [stops(np.array(ids[:end])) for end in (1, 2, 3)] == [False, False, True]


def test_ids_that_the_tokenizer_does_not_have(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(gpt2(tmp_path)))
    st, op, beyond = tokenizer.token_to_id("st"), tokenizer.token_to_id("op"), tokenizer.get_vocab_size() + 5
    stops = StopStrings(tokenizer, ["stop"])
    assert stops(np.array([beyond, st, op]))
    assert not stops(np.array([st, beyond, op]))
    assert not stops(np.array([st, op, beyond]))


def test_nothing_to_look_for(tmp_path: Path) -> None:
    assert not StopStrings(Tokenizer.from_file(str(gpt2(tmp_path))), [])(np.array([1]))
