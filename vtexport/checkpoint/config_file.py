"""What a checkpoint's config.json says before any library interprets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtexport.checkpoint.layouts import refuse_other_layouts, why_no_config
from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import InputError, quoted

CONFIG_FILE = "config.json"

_ANYWAY = "float32"  # what transformers creates where nothing is said
_PARTS = ("text_config", "vision_config")


@dataclass(frozen=True)
class ConfigFile:
    """The parts of config.json that decide what can be done with the checkpoint."""

    path: Path
    model_type: str | None
    dtype: str  # "float16", "bfloat16" or "float32": of random weights; stored ones say their own
    dtype_note: str | None = None  # where the file asks for another
    quantisation: str | None = None  # the method that it claims; whether it is true, the stored tensors show
    weights_file: str | None = None  # that from_pretrained reads instead of model.safetensors or its index


def read_config_file(folder: Path) -> ConfigFile:
    """Read `folder`'s config.json and refuse what vtexport cannot work with at all.

    Raises:
        InputError: the file is missing or damaged, or describes another layout or half a model.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(why_no_config(folder)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({quoted(error, path)}); fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; fetch the file again")
    refuse_other_layouts(path, content)
    model_type, weights_file = content.get("model_type"), content.get("transformers_weights")
    dtype, dtype_note = _dtype(path, content)
    return ConfigFile(
        path,
        model_type if isinstance(model_type, str) else None,
        dtype,
        dtype_note,
        _quantisation(content),
        weights_file if isinstance(weights_file, str) else None,
    )


def _sections(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration itself and those of its parts, `text_config` first."""
    return [content, *(part for name in _PARTS if isinstance(part := content.get(name), dict))]


def _quantisation(content: dict[str, Any]) -> str | None:
    for section in _sections(content):
        for key in ("quantization_config", "compression_config"):
            if claim := section.get(key):
                method = claim.get("quant_method") if isinstance(claim, dict) else None
                return quoted(method, limit=40) if isinstance(method, str) and method else key
    return None


def _dtype(path: Path, content: dict[str, Any]) -> tuple[str, str | None]:
    """The first dtype in the file that is one of ours, and a note where what counts there is another."""
    said = list(_dtypes(content))
    known = next((dtype for dtype in said if dtype in WEIGHT_DTYPES), _ANYWAY)
    if not said or said[0] == known:
        return known, None
    return known, f"{path} has dtype {quoted(repr(said[0]), 80)}; random weights are written in {known}"


def _dtypes(content: dict[str, Any]) -> Iterator[str]:
    for section in _sections(content):
        dtype = section.get("dtype") or section.get("torch_dtype")  # transformers 5 and before; the new one counts
        if isinstance(dtype, dict):  # one for each part, "" for all others
            yield str(dtype)
            yield from (str(dtype[part]).removeprefix("torch.") for part in ("", *_PARTS) if part in dtype)
        elif dtype:
            yield str(dtype).removeprefix("torch.")
