"""Building again: plans are added to a bundle of the same checkpoint, and never to another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.build import Report, build
from vtexport.bundle.reader import open_bundle
from vtexport.errors import InputError, UsageError
from vtexport.export import earlier
from vtexport.runtime.pipeline import Pipeline


def answer(bundle: Path, plan: str) -> list[int]:
    return Pipeline.open(bundle, plan).generate(PHOTO, "What is this?", max_new_tokens=8).token_ids


def plans(bundle: Path) -> list[str]:
    return [plan.name for plan in open_bundle(bundle).manifest.plans]


def test_plans_are_added_and_weights_are_not(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    build(str(tiny_checkpoint), target, keep=16)
    weights = target / "onnx" / "weights" / "model.safetensors"
    inode = weights.stat().st_ino
    build(str(tiny_checkpoint), target, method="none")
    build(str(tiny_checkpoint), target, keep=[32, 20], options={"order": "raster"})
    assert plans(target) == ["prunesid-16", "none", "prunesid-32-order-raster", "prunesid-20-order-raster"]
    assert weights.stat().st_ino == inode, "the weights must not be written again"
    assert weights.stat().st_nlink == 1, "onnx refuses files with two names"
    bundle = open_bundle(target)
    assert bundle.verify() == []
    for graph in bundle.manifest.graphs.values():
        if not graph.file.endswith("prune_plugin.onnx"):
            onnx.checker.check_model(str(bundle.path(graph.file)))
    assert answer(target, "prunesid-16") == answer(tiny_bundle, "prunesid-16")
    assert len({tuple(answer(target, name)) for name in plans(target)}) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_added_at_once_or_one_by_one_is_the_same(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for keep in (16, 32):
        build(str(tiny_checkpoint), tmp_path / "b", keep=keep)
    assert open_bundle(tmp_path / "b").manifest.files == open_bundle(tiny_bundle).manifest.files


def test_a_plan_of_the_same_name_is_replaced(tiny_checkpoint: Path, bundle_copy: Path) -> None:
    build(str(tiny_checkpoint), bundle_copy, keep=16)
    assert plans(bundle_copy) == ["prunesid-32", "prunesid-16"]


def test_another_checkpoint_is_refused_or_replaces(tiny_checkpoint: Path, bundle_copy: Path, tmp_path: Path) -> None:
    other = save_model(make_model(make_config(), seed=9), tmp_path / "other")
    before = open_bundle(bundle_copy).manifest
    with pytest.raises(UsageError, match=r"bundle of another checkpoint .*model.safetensors differs.*--replace"):
        build(str(other), bundle_copy, keep=20)
    assert open_bundle(bundle_copy).manifest == before
    build(str(other), bundle_copy, keep=20, replace=True)
    assert plans(bundle_copy) == ["prunesid-20"]


def test_another_tokenizer_is_another_checkpoint(tiny_checkpoint: Path, bundle_copy: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(tiny_checkpoint, tmp_path / "changed"))
    (changed / "chat_template.jinja").write_text("<image>")
    with pytest.raises(UsageError, match=r"chat_template.jinja differs"):
        build(str(changed), bundle_copy, keep=20)


def test_a_damaged_bundle_is_only_replaced_when_told(tiny_checkpoint: Path, bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer.json is missing.*--replace"):
        build(str(tiny_checkpoint), bundle_copy, keep=20)
    build(str(tiny_checkpoint), bundle_copy, keep=20, replace=True)
    assert plans(bundle_copy) == ["prunesid-20"]


def test_two_builds_at_once_lose_no_plan(tiny_checkpoint: Path, bundle_copy: Path) -> None:
    """The second to finish says so; what the first added stays."""

    def stage(text: str) -> None:
        if text.startswith("checking"):
            build(str(tiny_checkpoint), bundle_copy, keep=24)

    with pytest.raises(InputError, match=r"another build changed .* run the command again"):
        build(str(tiny_checkpoint), bundle_copy, keep=20, report=Report(stage=stage))
    assert plans(bundle_copy) == ["prunesid-16", "prunesid-32", "prunesid-24"]


def test_a_file_system_without_hard_links(
    tiny_checkpoint: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(earlier.os, "link", refuse)
    build(str(tiny_checkpoint), bundle_copy, keep=20)
    assert plans(bundle_copy) == ["prunesid-16", "prunesid-32", "prunesid-20"]
    assert open_bundle(bundle_copy).verify() == []


def test_a_full_disk_is_said_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="0 MB free and the bundle takes"):
        build(str(tiny_checkpoint), tmp_path / "b", keep=16)
    assert list(tmp_path.iterdir()) == []
