"""Tokenizer, chat template and image settings of a checkpoint, as files that the device runtime reads by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtexport.errors import InputError, quoted

# Copied as they are, for people and for other tools; the runtime needs only tokenizer.json, the template and manifest.
_COPIED = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json")


def write_text_files(
    source: Path, folder: Path, image_token_id: int, default_template: str, notify: Callable[[str], None]
) -> tuple[str, str | None]:
    """Writes tokenizer.json and chat_template.jinja into `folder`; returns the image token and the start token.

    tokenizer.json is what transformers makes of the checkpoint's files, so a SentencePiece-only checkpoint gets one too
    and special tokens are as transformers sets them.

    Raises:
        InputError: transformers cannot load the tokenizer, or it does not know the image token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # its many loaders raise whatever they meet
        raise InputError(
            f"the tokenizer in {source} cannot be loaded ({quoted(error, source)}); copy the tokenizer files of the "
            "model there"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer in {source} has no tokenizer.json form; convert it with transformers and save it"
        )
    backend.no_padding()
    backend.no_truncation()
    image_token = tokenizer.convert_ids_to_tokens(image_token_id)
    if image_token is None or tokenizer(image_token, add_special_tokens=False)["input_ids"] != [image_token_id]:
        raise InputError(
            f"the tokenizer in {source} does not read image token {image_token_id} ({image_token!r}) as one token; "
            "copy the tokenizer files of the same model there"
        )
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    template = find_chat_template(source)
    if template is None:
        notify(f"{source} has no chat template; the bundle gets the family's own")
        template = default_template
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return image_token, tokenizer.bos_token


def find_chat_template(source: Path) -> str | None:
    """The chat template, where transformers looks for it: its own file, the older JSON file, processor, tokenizer.

    Raises:
        InputError: one of the files is not JSON.
    """
    jinja = source / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = source / name
        if not path.is_file():
            continue
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a JSON object ({quoted(error, path)}); fetch the file again") from error
        if isinstance(found, list):  # several named templates
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None
