"""What a checkpoint's config.json says before any library interprets it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtexport.errors import InputError, quoted

CONFIG_FILE = "config.json"

# transformers' names -> safetensors' names
WEIGHT_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class ConfigFile:
    """The parts of config.json that decide what can be done with the checkpoint."""

    path: Path
    model_type: str | None
    dtype: str  # "float16", "bfloat16" or "float32"


def read_config_file(folder: Path) -> ConfigFile:
    """Read `folder`'s config.json and refuse what vtexport cannot work with at all.

    Raises:
        InputError: the file is missing or damaged, or says that the weights are quantised or of another dtype.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {CONFIG_FILE}, so it is no checkpoint in Hugging Face's layout; "
            "give the folder that save_pretrained() wrote or that was downloaded from the hub"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({quoted(error, path)}); fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; fetch the file again")
    _refuse_quantised(path, content)
    model_type = content.get("model_type")
    return ConfigFile(path, model_type if isinstance(model_type, str) else None, _dtype(path, content))


def _sections(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration itself and those of its parts, `text_config` first."""
    parts = [part for name in ("text_config", "vision_config") if isinstance(part := content.get(name), dict)]
    return [content, *parts]


def _refuse_quantised(path: Path, content: dict[str, Any]) -> None:
    for section in _sections(content):
        quantisation = section.get("quantization_config") or section.get("compression_config")
        if quantisation:
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
            method = quoted(method or "quantization_config", path, limit=140)
            raise InputError(
                f"{path} says that the weights are quantised ({method}), and vtexport reads "
                "float32, float16 and bfloat16; use the checkpoint that this one was quantised from"
            )


def _dtype(path: Path, content: dict[str, Any]) -> str:
    for section in _sections(content):
        dtype = section.get("dtype") or section.get("torch_dtype")  # transformers 5 and before
        if dtype:
            dtype = str(dtype).removeprefix("torch.")
            if dtype not in WEIGHT_DTYPES:
                raise InputError(
                    f"{path} has dtype {quoted(repr(dtype), path)}; vtexport works with {', '.join(WEIGHT_DTYPES)}"
                )
            return dtype
    return "float32"  # what transformers creates where nothing is said
