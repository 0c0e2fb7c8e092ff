"""The small files of a LLaVA checkpoint, without weights, and a prompt reader made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hub_llava import IMAGE_TOKEN_ID, image_files, small_config, text_files

from vtexport.bundle.manifest import TEMPLATE_NAME, TOKENIZER_NAME, StoredTensor, Text
from vtexport.models.llava import Llava
from vtexport.processing.text import TextFiles, read_text_files
from vtexport.processing.tokenizer import load_tokenizer
from vtexport.runtime.prompt import PromptReader


def write_text_checkpoint(folder: Path, **changed: Any) -> Path:
    """Files of the hub's layout; `changed` has others by name, "_" for ".", None for none of that name."""
    contents = {"config.json": small_config(), **text_files(), **image_files()}
    contents |= {name.replace("__", "."): content for name, content in changed.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if content is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def processor_of(folder: Path) -> Any:
    """transformers' processor for the files."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def read_files(
    folder: Path, familys_own: str | None = Llava.chat_template, image_token_id: int = IMAGE_TOKEN_ID
) -> TextFiles:
    """Settings that a build makes of them."""
    return read_text_files(folder, load_tokenizer(folder), image_token_id, familys_own)


def reader_of(files: TextFiles, folder: Path) -> PromptReader:
    """The device's reader for what a build made, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder)
    text = Text(
        image_token=files.image_token,
        image_token_id=IMAGE_TOKEN_ID,
        bos_token=files.bos_token,
        special_tokens=files.special_tokens,
        eos_token_ids=[2],
        embedding=StoredTensor(file="", offset=0, shape=[1, 1], dtype="float32"),
        part_roles=files.chat_template.part_roles,
    )
    return PromptReader.from_files(text, folder / TOKENIZER_NAME, folder / TEMPLATE_NAME)
