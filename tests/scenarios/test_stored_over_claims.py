"""A bundle of a checkpoint whose configuration, names and leftovers say what its tensors do not: its answers are those
of transformers' model with these tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_parity import PROMPT, load, pytorch_inputs
from tiny_llava import PHOTO

from vtexport.build import BuildProgress, build
from vtexport.errors import InputError
from vtexport.runtime.pipeline import Pipeline

BEHIND = ("encoder.layers.3.", "post_layernorm")  # of the tower's feature layer


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def misnamed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a trainer may have left it: wrapped names, a cut tower, scales, a tie and a quantisation that are not true."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("claims") / "ck"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in BEHIND)}
    assert len(kept) == len(tensors) - 18
    kept |= {"image_newline": torch.zeros(3), "language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    renamed = {f"module.{name}": tensor for name, tensor in kept.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    quantisation = {"quant_method": "bitsandbytes", "load_in_4bit": False}
    edit(
        folder / "config.json",
        tie_word_embeddings=True,
        vision_feature_layer=[-2],
        torch_dtype="auto",
        quantization_config=quantisation,
    )
    return folder


def test_answers_are_those_of_the_stored_tensors(misnamed: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    bundle = build(str(misnamed), tmp_path / "b", method="none", report=BuildProgress(note=notes.append)).folder
    added = build(str(misnamed), bundle, method="uniform", keep=16)  # by the names in the bundle's own files
    assert [plan.name for plan in added.manifest.plans] == ["none", "uniform-16"]
    inputs = pytorch_inputs(tiny_checkpoint, Image.open(PHOTO))
    tokens = load(tiny_checkpoint).generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    answer = Pipeline.open(bundle, "none").generate(PHOTO, PROMPT, max_new_tokens=12)
    assert answer.token_ids == expected
    for said in ("'module.'", "two different matrices", "quantisation bitsandbytes", "image_newline"):
        assert sum(said in note for note in notes) == 1
    assert Pipeline.open(bundle, "uniform-16").generate(PHOTO, PROMPT, max_new_tokens=4).token_ids


def test_a_method_that_reads_the_whole_tower_is_refused_before_anything_is_written(
    misnamed: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nuwa reads the outputs of the vision tower's blocks up to the last of 4"):
        build(str(misnamed), tmp_path / "b", method="nuwa", keep=16)
    assert list(tmp_path.iterdir()) == []
