"""A checkpoint's folder as transformers' Auto classes can read it, where one word in config.json keeps them from it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vtexport.checkpoint.config_file import CONFIG_FILE

_DTYPES = ("dtype", "torch_dtype")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


@contextlib.contextmanager
def readable_folder(folder: Path) -> Iterator[Path]:
    """`folder`, or for the block a copy of its small files without dtypes that torch does not have ("auto").

    A tokenizer and a processor have no dtype, but transformers reads config.json to find their classes and stops there.
    Without torch it leaves dtypes as they are, and nothing is to be done.
    """
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it vanished or changed meanwhile, which is found where the file is read
        content = {}
    if not _drop_unknown(content):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="vtexport-") as name:
        copy = Path(name) / folder.resolve().name
        copy.mkdir()
        for file in folder.iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, copy / file.name)
        (copy / CONFIG_FILE).write_text(json.dumps(content), encoding="utf-8")
        yield copy


def _drop_unknown(content: dict[str, Any]) -> bool:
    """Takes dtypes that are none of torch's out of a configuration and its parts; whether there were any."""
    if find_spec("torch") is None:
        return False
    import torch

    found = False
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key in _DTYPES:
            word = part.get(key)
            if isinstance(word, str) and not isinstance(getattr(torch, word, None), torch.dtype):
                del part[key]
                found = True
    return found
