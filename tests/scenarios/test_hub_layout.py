"""A checkpoint written as the hub's `llava-hf/llava-1.5-7b-hf` is: cached or in a folder, its answers are PyTorch's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_llava import CONFIG, HUB_ID, IMAGE_TOKEN_ID, REVISION, TEMPLATE, write_cache, write_repository
from PIL import Image
from test_parity import NEW_TOKENS, PROMPT, load, processor, pytorch_inputs, pytorch_pruned
from text_checkpoint import read_files
from tiny_llava import PHOTO

from vtexport.build import build
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.model_config import read_model_config
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.prompt import PromptReader

DIALECTS = ("modern", "classic")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("hub") / "llava-1.5-7b-hf")


@pytest.fixture(scope="module")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command of the README from the cache, then a plan added from a folder with the same files."""
    home = tmp_path_factory.mktemp("hf-home")
    write_cache(repository, home / "hub")
    here = tmp_path_factory.mktemp("bundles")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    target = here / "llava"
    command = [sys.executable, "-m", "vtexport", "build", "--model", HUB_ID, "--method", "prunesid", "--keep", "16"]
    shown = subprocess.run([*command, "-o", str(target)], env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "note:" not in shown.stderr
    source = open_bundle(target).manifest.source
    assert (source.kind, source.id, source.revision) == ("hub", HUB_ID, REVISION)
    build(str(repository), target, method="none")
    return target


@pytest.mark.parametrize("dialect", DIALECTS)
def test_pruned_answers_are_pytorchs(repository: Path, bundle: Path, dialect: str) -> None:
    image = Image.open(PHOTO)
    selection, _, _, tokens = pytorch_pruned(load(repository), pytorch_inputs(repository, image), 16)
    answer = Pipeline.open(bundle, "prunesid-16", dialect=dialect).generate(image, PROMPT, max_new_tokens=NEW_TOKENS)
    assert answer.keep_indices == selection.keep_indices[0].tolist()
    assert answer.token_ids == tokens
    assert len(set(tokens)) > 4, "a model that repeats itself proves little"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_unpruned_answers_are_generates(repository: Path, bundle: Path, dialect: str) -> None:
    """And the text is what transformers' tokenizer makes of the tokens."""
    image = Image.open(PHOTO)
    inputs = pytorch_inputs(repository, image)
    tokens = load(repository).generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    tokens = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    answer = Pipeline.open(bundle, "none", dialect=dialect).generate(image, PROMPT, max_new_tokens=NEW_TOKENS)
    assert answer.token_ids == tokens
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.text == processor(repository).decode(tokens, skip_special_tokens=True)


def test_the_bundle_is_whole_and_has_its_shards(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.verify() == []
    assert sum(name.startswith("onnx/weights/") for name in opened.manifest.files) == 3
    assert opened.manifest.decoder.num_key_value_heads == opened.manifest.decoder.num_attention_heads
    assert (opened.manifest.text.image_token, opened.manifest.text.eos_token_ids) == ("<image>", [2])


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "nowhere"])
def test_wherever_the_chat_template_is(repository: Path, bundle: Path, tmp_path: Path, place: str) -> None:
    """The prompt has the tokens that transformers makes with the same files; without a template, LLaVA's own."""
    folder = Path(shutil.copytree(repository, tmp_path / "source"))
    for name in {"chat_template.jinja", "chat_template.json"} - {place}:
        (folder / name).unlink()
    if place == "tokenizer_config.json":
        settings = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    written = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    files = read_files(folder)
    files.write(written)
    read = PromptReader(Bundle(written, open_bundle(bundle).manifest)).read(PROMPT)
    tokenizer = processor(folder).tokenizer
    text = f"USER: <image>\n{PROMPT} ASSISTANT:"
    if place != "nowhere":
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        ]
        reader = tokenizer if place == "tokenizer_config.json" else processor(folder)
        assert reader.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    assert len(files.notes) == (place == "nowhere")
    assert read.ids(IMAGE_TOKEN_ID, [1]).tolist() == tokenizer(text)["input_ids"]


def test_the_alias_has_the_sizes_of_the_hubs_configuration(tmp_path: Path) -> None:
    """The hub's file leaves out what the packaged one, which `--weights random` takes, states."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    hub, packaged = read_model_config(tmp_path), read_model_config(ALIASES["llava"].folder)
    assert hub.shapes == packaged.shapes
    assert hub.file.dtype == packaged.file.dtype
    one, other = (read.spec.decoder for read in (hub, packaged))
    assert one.inv_freq.tolist() == other.inv_freq.tolist()
    assert replace(one, inv_freq=other.inv_freq) == other
    assert hub.spec.vision == packaged.spec.vision
