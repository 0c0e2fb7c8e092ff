"""Bound tensors against what transformers' from_pretrained makes of the same files: ties, and names in every layout."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from vtexport.checkpoint.resolve import Checkpoint, open_checkpoint
from vtexport.errors import InputError
from vtexport.models.registry import family_of

LLAVA = family_of("llava", "")

IN_MEMORY_HEAD, IN_MEMORY_EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
Rename = Callable[[str], str]


def written(
    source: Path, folder: Path, model: Any, rename: Rename, left_out: tuple[str, ...] = (), **changed: torch.Tensor
) -> Path:
    """The model's tensors under new names (of those in memory), in a folder with the source's other files."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = {name: tensor.contiguous() for name, tensor in {**model.state_dict(), **changed}.items()}
    tensors = {rename(name): tensor.clone() for name, tensor in state.items() if name not in left_out}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def value(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    entry = checkpoint.tensors[name]
    data = entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes]
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(entry.shape)


def opened(folder: Path) -> tuple[Checkpoint, list[str]]:
    notes: list[str] = []
    return open_checkpoint(str(folder), notify=notes.append), notes


# Ties


@pytest.mark.parametrize("stored", ["equal", "different", "head alone", "embedding alone"])
@pytest.mark.parametrize("claim", ["none", "top", "text", "both"])
def test_ties(
    tiny_model: Any, tiny_checkpoint: Path, tmp_path: Path, edit_json: Callable[..., None], claim: str, stored: str
) -> None:
    """Head and embedding are the matrices that transformers' model has, whatever config.json claims."""
    other = torch.randn_like(tiny_model.lm_head.weight, generator=torch.Generator().manual_seed(3))
    changed = {IN_MEMORY_HEAD: tiny_model.state_dict()[IN_MEMORY_EMBEDDING]} if stored == "equal" else {}
    if stored == "different":
        changed = {IN_MEMORY_HEAD: other}
    left_out = {"head alone": (IN_MEMORY_EMBEDDING,), "embedding alone": (IN_MEMORY_HEAD,)}.get(stored, ())
    folder = written(tiny_checkpoint, tmp_path / "ck", tiny_model, lambda name: name, left_out, **changed)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | {"tie_word_embeddings": claim in ("text", "both")}
    edit_json(folder / "config.json", tie_word_embeddings=claim in ("top", "both"), text_config=text)

    loaded, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        assert (claim, len(left_out)) == ("none", 1)
        with pytest.raises(InputError, match="lacks the tensor"):
            opened(folder)
        return
    checkpoint, notes = opened(folder)
    ours = [value(checkpoint, checkpoint.head), value(checkpoint, checkpoint.embedding)]
    theirs = [loaded.lm_head.weight, loaded.get_input_embeddings().weight]
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    is_tied = theirs[0].data_ptr() == theirs[1].data_ptr()
    assert (checkpoint.head == checkpoint.embedding) == is_tied
    assert len(notes) == (claim != "none" and stored == "different")
    assert is_tied or {checkpoint.head, checkpoint.embedding} <= set(checkpoint.tensors)


def test_a_tied_pair_in_two_types(tiny_checkpoint: Path, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "ck"))
    tensors = load_file(folder / "model.safetensors")
    head, embedding = (next(name for name in tensors if part in name) for part in ("lm_head", "embed_tokens"))
    tensors[embedding] = tensors[embedding].bfloat16().float()
    edit_json(folder / "config.json", tie_word_embeddings=True)
    for number, difference in enumerate((0, 1)):
        tensors[head] = (tensors[embedding] + difference).bfloat16()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        checkpoint, notes = opened(folder)
        assert (checkpoint.head == checkpoint.embedding, len(notes)) == (difference == 0, number)


# Names


def hub(name: str) -> str:
    """As `llava-hf/llava-1.5-7b-hf` and transformers up to 4.51 name them."""
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.")
    return "language_model." + name if name.startswith("lm_head") else name


LAYOUTS: dict[str, Rename] = {
    "hub": hub,
    "in memory": lambda name: name,
    "with vision_model, as transformers 4.52 and 5.0 to 5.5": lambda name: name.replace(
        "model.vision_tower.", "model.vision_tower.vision_model."
    ),
    "base model alone": lambda name: name.removeprefix("model."),
    "a model too many, as transformers 5.10 to 5.23": lambda name: name.replace(
        "model.language_model.", "model.language_model.model."
    ),
    "hub, a model too many": lambda name: hub(name).replace("language_model.model.", "language_model.model.model."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_bind_as_they_load(tiny_model: Any, tiny_checkpoint: Path, tmp_path: Path, layout: str) -> None:
    folder = written(tiny_checkpoint, tmp_path / "ck", tiny_model, LAYOUTS[layout])
    _, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        pytest.skip("this version of transformers does not load it")
    checkpoint, notes = opened(folder)
    assert notes == []
    for name, parameter in tiny_model.state_dict().items():
        assert torch.equal(value(checkpoint, checkpoint.family.canonical_name(name)), parameter)


def test_every_name_that_transformers_takes_binds(tiny_model: Any) -> None:
    """transformers' own renaming, asked about each tensor behind every combination of prefixes."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    state = tiny_model.state_dict()
    renamings = [each for each in get_model_conversion_mapping(tiny_model) if isinstance(each, WeightRenaming)]

    def loaded(stored: str) -> str | None:
        name, _ = rename_source_key(stored, renamings, [], tiny_model.base_model_prefix, state)
        return name if name in state else None

    fronts = ["", "model.", "model.model.", "base_model.", "language_model.", "vision_tower."]
    middles = ["", "model.", "model.model.", "vision_model.", "model.vision_model.", "language_model."]
    parts = ["", "language_model.", "vision_tower.", "multi_modal_projector."]
    taken = 0
    for name in state:
        bare = name.removeprefix("model.")
        own = next(part for part in [*parts[1:], ""] if bare.startswith(part))
        for front, part, middle in itertools.product(fronts, {own, ""}, middles):
            stored = front + part + middle + bare.removeprefix(own)
            if (found := loaded(stored)) is not None:
                taken += 1
                assert LLAVA.canonical_name(stored) == LLAVA.canonical_name(found), stored
                assert LLAVA.read_name(stored)[1] in ((), ("model.",)), stored
    assert taken > 4 * len(state)
