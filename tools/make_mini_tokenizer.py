"""Write the tokenizer of the packaged `mini` model: five special tokens and one token for each byte.

    python tools/make_mini_tokenizer.py [folder]

The folder is `vtexport/checkpoint/packaged/mini` unless another is given.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")  # ids 0 to 4
MAX_TOKENS = 2048  # max_position_embeddings in config.json
MINI_FOLDER = Path(__file__).resolve().parent.parent / "vtexport" / "checkpoint" / "packaged" / "mini"


def byte_characters() -> list[str]:
    """The visible character that byte-level BPE writes for each byte, in byte order.

    Printable Latin-1 stands for itself, the other bytes take the characters from U+0100 on (the convention of GPT-2,
    which tokenizers' ByteLevel has built in).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def tokenizer() -> dict[str, Any]:
    """Content of tokenizer.json: byte-level BPE without merges, `<s>` put in front as Llama's tokenizer does."""
    vocabulary = {text: number for number, text in enumerate((*SPECIAL_TOKENS, *byte_characters()))}
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
        "pre_tokenizer": byte_level,
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
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


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


def main(folder: Path) -> None:
    for name, content in (("tokenizer.json", tokenizer()), ("tokenizer_config.json", tokenizer_config())):
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MINI_FOLDER)
