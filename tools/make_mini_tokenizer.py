"""Write the tokenizer of the packaged `mini` model: five special tokens, one token for each byte, and whole words.

Whatever text comes in can be written in bytes; the words are those of the questions and answers that the model learned
(vtexport/eval/questions.py). Coordinates of boxes are one token each, in steps of half a patch.

    python tools/make_mini_tokenizer.py [folder]

The folder is `vtexport/checkpoint/packaged/mini` unless another is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtexport.eval.drawing import COLOURS, DIGITS, SHAPES, WORDS
from vtexport.eval.questions import plural

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")  # ids 0 to 4
MAX_TOKENS = 2048  # max_position_embeddings in config.json
COORDINATE_STEPS = 48  # half a patch at 24 x 24 patches: 0.00, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.15, ... 1.00
# A piece of text that may be one token: a speaker, a coordinate with what is around it, a word, a digit, a sign.
PIECES = r" ?[A-Z]+:| ?\[?\d\.\d\d[,\]]?| ?\p{L}+| ?\d| ?[^\s\p{L}\d]|\s"
MINI_FOLDER = Path(__file__).resolve().parent.parent / "vtexport" / "checkpoint" / "packaged" / "mini"


def byte_characters() -> list[str]:
    """The visible character that byte-level BPE writes for each byte, in byte order.

    Printable Latin-1 stands for itself, the other bytes take the characters from U+0100 on (the convention of GPT-2,
    which tokenizers' ByteLevel has built in).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def coordinates(place: int) -> list[str]:
    """The tokens of a box's coordinate, x0, y0, x1 or y1 (`place` 0 to 3), from 0 to 1 in equal steps."""
    before, behind = " [" if place == 0 else " ", "]" if place == 3 else ","
    return [f"{before}{step / COORDINATE_STEPS:.2f}{behind}" for step in range(COORDINATE_STEPS + 1)]


def words() -> list[str]:
    """Texts that are one token, with the space before them where they follow another word."""
    common = (
        "there a the is colour shape many objects object are digit word written left right or of above below centre"
    )
    named = [*COLOURS, *SHAPES, *map(plural, SHAPES), *WORDS, *DIGITS, "yes", "no"]
    inside = [f" {word}" for word in (*common.split(), *named)]
    return [
        "USER:",
        " ASSISTANT:",
        "Is",
        "What",
        "How",
        "Where",
        *inside,
        *(c for i in (0, 1, 3) for c in coordinates(i)),
    ]


def tokenizer(whole: Sequence[str]) -> dict[str, Any]:
    """Content of tokenizer.json: byte-level BPE without merges, `<s>` put in front as Llama's tokenizer does.

    A piece of text that is in `whole` is one token, any other one token a byte.
    """
    characters = byte_characters()
    pieces = ("".join(characters[byte] for byte in text.encode()) for text in whole)
    vocabulary = {text: number for number, text in enumerate((*SPECIAL_TOKENS, *characters, *pieces))}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[text],
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text in SPECIAL_TOKENS
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [vocabulary["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is in the vocabulary is taken whole
            "vocab": vocabulary,
            "merges": [],
        },
    }


def text(whole: Sequence[str] | None = None) -> str:
    """The text of tokenizer.json."""
    return _json(tokenizer(words() if whole is None else whole))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def tokenizer_config() -> dict[str, Any]:
    """Content of tokenizer_config.json."""
    return {
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "extra_special_tokens": {"image_token": "<image>"},
        "model_max_length": MAX_TOKENS,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def main(folder: Path, whole: Sequence[str] | None = None) -> None:
    """Writes both files. `whole` are the texts that are one token, `words()` unless given."""
    (folder / "tokenizer.json").write_text(text(whole), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(_json(tokenizer_config()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MINI_FOLDER)
