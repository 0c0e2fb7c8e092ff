"""Faults that the small files show are said before weights are fetched, written or copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_llava import write_repository

from vtexport.build import build
from vtexport.checkpoint import hub, random_weights, resolve
from vtexport.checkpoint.resolve import locate, open_weights
from vtexport.errors import UsageError, VtexportError
from vtexport.models.parts import ModelSpec
from vtexport.models.registry import family_of

LLAVA = family_of("llava", "")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("judged") / "checkpoint")


@pytest.fixture
def checkpoint(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "checkpoint"))


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def decoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "gemma2"
    (folder / "config.json").write_text(json.dumps(config))


def tower(folder: Path) -> None:
    edited(folder / "config.json", vision_feature_select_strategy="full")


def tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def image_size(folder: Path) -> None:
    edited(folder / "preprocessor_config.json", crop_size={"height": 98, "width": 98})


def end_token(folder: Path) -> None:
    edited(folder / "generation_config.json", eos_token_id=10**6)


def nothing(folder: Path) -> None:
    pass


def tensor_names(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.mm_projector.0.weight"] = "model-00001-of-00003.safetensors"
    edited(folder / "model.safetensors.index.json", **index)


FAULTS: list[tuple[Callable[[Path], None], dict[str, Any], str]] = [
    (decoder, {}, "text_config.model_type = 'gemma2'"),
    (tower, {}, "vision_feature_select_strategy = 'full'"),
    (tokenizer, {}, "the tokenizer in .* cannot be loaded"),
    (image_size, {}, "pixels of 98 x 98"),
    (end_token, {}, "1000000"),
    (nothing, {"keep": 66}, "66"),
    (nothing, {"keep": None}, "needs a budget"),
    (nothing, {"keep": [16, 32], "dynamic": True, "mean": 99}, "--mean 99"),
]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that goes on to the weights fails."""

    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were touched")

    monkeypatch.setattr(resolve, "write_random_checkpoint", unwanted)
    monkeypatch.setattr("vtexport.assemble.staged.copy_weights", unwanted)


@pytest.mark.parametrize("weights", ["stored", "random"])
@pytest.mark.parametrize(("fault", "options", "message"), FAULTS)
def test_nothing_is_written(
    checkpoint: Path,
    tmp_path: Path,
    no_weights: None,
    weights: Any,
    fault: Callable[[Path], None],
    options: dict[str, Any],
    message: str,
) -> None:
    fault(checkpoint)
    options = {"keep": 16, **options}
    output, cache = tmp_path / "bundle", tmp_path / "cache"
    with pytest.raises(VtexportError, match=message) as caught:
        build(str(checkpoint), output, weights=weights, cache_dir=cache, **options)
    assert "vtexport-" not in str(caught.value).replace(str(tmp_path), "")  # no name of a temporary copy
    assert not output.exists()
    assert not cache.exists()


@pytest.mark.parametrize("weights", ["stored", "random"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "visionzip"}, "this vision tower has none"),
        ({"method": "prunesid", "options": {"cls_slot": True}}, "this vision tower has no CLS token"),
    ],
)
def test_a_plan_that_the_tower_cannot_give(
    checkpoint: Path,
    tmp_path: Path,
    no_weights: None,
    monkeypatch: pytest.MonkeyPatch,
    weights: Any,
    options: dict[str, Any],
    message: str,
) -> None:
    """A method that keeps CLS, on a tower that has none."""

    def without_cls(*arguments: Any) -> ModelSpec:
        spec = model_spec(*arguments)
        return replace(spec, vision=replace(spec.vision, cls_rows=0))

    model_spec = LLAVA.model_spec
    monkeypatch.setattr(LLAVA, "model_spec", without_cls)
    output, cache = tmp_path / "bundle", tmp_path / "cache"
    with pytest.raises(UsageError, match=message):
        build(str(checkpoint), output, keep=16, weights=weights, cache_dir=cache, **options)
    assert not output.exists()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, r"holds a bundle that cannot be opened .*schema_version 2.*; give --replace"),
        ({"precision": "float16"}, "is a bundle in float16, this build is in float32; give another -o/--output"),
        ({"versions": {"vtexport": "0.0.1"}}, "was made by vtexport 0.0.1, this is .*; give another -o/--output"),
    ],
)
def test_what_stands_at_the_output_is_judged_first(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """Before random weights of what may be 30 GB are written."""
    edited(bundle_copy / "manifest.json", **change)
    before = (bundle_copy / "manifest.json").read_bytes()
    cache = tmp_path / "cache"
    monkeypatch.chdir(bundle_copy.parent)
    for output in (bundle_copy, None):
        if output is None:  # a build that is given none makes its own name, where the same stands
            bundle_copy.rename("mini")
        with pytest.raises(UsageError, match=message):
            build("mini", output, weights="random", cache_dir=cache, keep=16)
    assert Path("mini/manifest.json").read_bytes() == before
    assert not cache.exists()


@pytest.mark.parametrize(
    ("fault", "options", "message"),
    [FAULTS[0], FAULTS[3], FAULTS[5], (tensor_names, {}, "as the original LLaVA code does")],
)
def test_only_small_files_are_fetched(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path], None],
    options: dict[str, Any],
    message: str,
) -> None:
    fault(checkpoint)
    fetched = []

    def fetch(hub_id: str, revision: str | None, *, with_weights: bool, notify: Any) -> Path:
        fetched.append(with_weights)
        return checkpoint

    monkeypatch.setattr(hub, "fetch_snapshot", fetch)
    with pytest.raises(VtexportError, match=message):
        build("someone/llava", tmp_path / "bundle", **{"keep": 16, **options})
    assert fetched == [False]


def test_weights_are_fetched_of_the_commit_that_was_judged(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "b" * 40
    snapshot = checkpoint.rename(checkpoint.with_name(commit))
    asked = []

    def fetch(hub_id: str, revision: str | None, *, with_weights: bool, notify: Any) -> Path:
        asked.append((hub_id, revision, with_weights))
        return snapshot

    monkeypatch.setattr(hub, "fetch_snapshot", fetch)
    opened = open_weights(locate("someone/llava@main"))
    assert asked == [("someone/llava", "main", False), ("someone/llava", commit, True)]
    assert opened.source.revision == commit


def test_the_hub_is_asked_for_no_weights_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the patterns that are given to the library, for names as repositories have them."""
    import fnmatch

    import huggingface_hub

    patterns: dict[bool, list[str]] = {}

    def download(hub_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        patterns[any("safetensors" in pattern for pattern in allow_patterns)] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "_why_no_answer", lambda *args: None)
    for with_weights in (False, True):
        hub.fetch_snapshot("someone/llava", None, with_weights=with_weights, notify=lambda line: None)
    large = ["model.safetensors", "model-00001-of-00003.safetensors"]
    assert not [name for name in large if any(fnmatch.fnmatch(name, each) for each in patterns[False])]
    assert all(any(fnmatch.fnmatch(name, each) for each in patterns[True]) for name in large)


def test_random_weights_have_the_small_files_that_were_judged(checkpoint: Path, tmp_path: Path) -> None:
    located = locate(str(checkpoint), weights="random")
    with resolve.small_files(located) as folder:
        judged = {path.name: path.read_bytes() for path in random_weights.copied_files(folder)}
    opened = open_weights(located, cache_dir=tmp_path / "cache", notify=lambda line: None)
    assert {path.name: path.read_bytes() for path in random_weights.copied_files(opened.folder)} == judged
