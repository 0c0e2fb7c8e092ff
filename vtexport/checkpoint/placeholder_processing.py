"""Tokenizer, chat template and image settings for a checkpoint that comes as a configuration alone.

They let random weights of true shapes be built and run without a download. The tokenizer has the special ids of the
configuration and one token a byte, so text goes in and out; it is not the vocabulary of any trained model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtexport.checkpoint.aliases import PACKAGED
from vtexport.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
CHAT_TEMPLATE_FILE = "chat_template.jinja"
IMAGE_SETTINGS_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"

_FIRST_BYTE_ID = 3  # as in Llama's vocabulary, after <unk>, <s> and </s>


def has_tokenizer(folder: Path) -> bool:
    """True where the folder holds a tokenizer in any of the layouts that transformers reads."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def write_placeholder_processing(folder: Path, config: Any) -> None:
    """Write the files a processor needs into `folder`; those that are there already stay as they are.

    Raises:
        InputError: the configuration's vocabulary has no room for one token a byte.
    """
    image_size, patch_size = config.vision_config.image_size, config.vision_config.patch_size
    files: dict[str, str] = {}
    if not has_tokenizer(folder):
        specials = _special_tokens(config)
        files["tokenizer.json"] = _json(_tokenizer(specials, config.text_config.vocab_size))
        files["tokenizer_config.json"] = _json(_tokenizer_config(specials, config.text_config.max_position_embeddings))
    files[CHAT_TEMPLATE_FILE] = (PACKAGED / "mini" / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8")
    image_settings = json.loads((PACKAGED / "mini" / IMAGE_SETTINGS_FILE).read_text(encoding="utf-8"))
    image_settings |= {
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
    }
    processor = json.loads((PACKAGED / "mini" / PROCESSOR_FILE).read_text(encoding="utf-8"))
    processor |= {
        "patch_size": patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    files[IMAGE_SETTINGS_FILE], files[PROCESSOR_FILE] = _json(image_settings), _json(processor)
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")


def _special_tokens(config: Any) -> dict[str, int]:
    """Text -> id of the special tokens, at the ids the configuration states."""
    text = config.text_config

    def stated(*values: Any) -> int | None:
        return next((value for value in values if isinstance(value, int)), None)

    wanted = {
        "<s>": stated(text.bos_token_id, 1),
        "</s>": stated(text.eos_token_id, 2),
        "<image>": stated(config.image_token_index),
        "<pad>": stated(getattr(config, "pad_token_id", None), text.pad_token_id),
        "<unk>": 0,
    }
    specials: dict[str, int] = {}
    for token, number in wanted.items():
        if number is not None and 0 <= number < text.vocab_size and number not in specials.values():
            specials[token] = number
    if "<image>" not in specials:
        raise InputError(
            f"the configuration has image_token_index {config.image_token_index}, which is not a free id below its "
            f"vocab_size {text.vocab_size}; correct it, or copy the model's own tokenizer files beside config.json"
        )
    return specials


def _tokenizer(specials: dict[str, int], vocabulary_size: int) -> dict[str, Any]:
    """Content of tokenizer.json: byte tokens `<0x00>` to `<0xFF>` from id 3 on, fillers like `[259]` everywhere else.

    Fillers decode to visible text, so whatever a random model answers can be read.
    """
    free = (number for number in range(_FIRST_BYTE_ID, vocabulary_size) if number not in specials.values())
    byte_ids = {number: f"<0x{byte:02X}>" for byte, number in zip(range(256), free, strict=False)}
    if len(byte_ids) < 256:
        raise InputError(
            f"a placeholder tokenizer needs a vocabulary of at least 256 bytes and the special tokens, and the "
            f"configuration has vocab_size {vocabulary_size}; copy the model's own tokenizer files beside config.json"
        )
    by_id = {number: f"[{number}]" for number in range(vocabulary_size)}
    by_id |= byte_ids | {number: token for token, number in specials.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, number in sorted(specials.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _start_token_first(specials["<s>"]) if "<s>" in specials else None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if "<unk>" in specials else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {by_id[number]: number for number in range(vocabulary_size)},
            "merges": [],
        },
    }


def _start_token_first(number: int) -> dict[str, Any]:
    def start(segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": "<s>", "type_id": segment}}

    def text(segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": "AB"[segment], "type_id": segment}}

    return {
        "type": "TemplateProcessing",
        "single": [start(0), text(0)],
        "pair": [start(0), text(0), start(1), text(1)],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}},
    }


def _tokenizer_config(specials: dict[str, int], max_tokens: int) -> dict[str, Any]:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {
        **{role: token for role, token in roles.items() if token in specials},
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": "<image>"},
        "model_max_length": max_tokens,
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
