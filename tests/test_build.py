"""Building again: plans are added to a bundle of the same checkpoint, and never to another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.assemble import earlier
from vtexport.build import BuildProgress, Report, build
from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long


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
        if not graph.file.endswith("prune.native.onnx"):
            onnx.checker.check_model(str(bundle.path(graph.file)))
    assert answer(target, "prunesid-16") == answer(tiny_bundle, "prunesid-16")
    assert len({tuple(answer(target, name)) for name in plans(target)}) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def bytes_on_disk(folder: Path) -> dict[str, int]:
    """Bytes that the disk holds for the weights and for everything else, a file with two names once."""
    held = {"weights": 0, "other": 0}
    for status, path in {path.stat().st_ino: (path.stat(), path) for path in folder.rglob("*")}.values():
        if path.is_file():
            held["weights" if path.suffix == ".safetensors" else "other"] += status.st_size
    return held


def test_more_plans_are_more_graphs_and_no_weights(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Three budgets at once, and a second method later; what is left on the disk is counted, leftovers included."""
    build(str(tiny_checkpoint), tmp_path / "b", keep=[16, 24, 32])
    two, three = bytes_on_disk(tiny_bundle), bytes_on_disk(tmp_path)
    build(str(tiny_checkpoint), tmp_path / "b", method="none")
    four = bytes_on_disk(tmp_path)
    assert two["weights"] == three["weights"] == four["weights"]
    assert two["weights"] == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert two["other"] < three["other"] < four["other"]
    before, after = (set(open_bundle(folder).manifest.graphs) for folder in (tiny_bundle, tmp_path / "b"))
    # one decoder serves every plan, one tower every plan with the same signals
    assert after - before == {
        "prunesid-24.prune", "prunesid-24.prune.native", "none.prune", "vision.modern", "vision.classic"
    }  # fmt: skip
    for path in (tmp_path / "b" / "onnx").glob("*.onnx"):
        assert path.stat().st_size < two["weights"] / 4, f"{path.name} should name weights and not hold them"


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
    with pytest.raises(UsageError, match=r"cannot be opened .*tokenizer.json is missing.*--replace"):
        build(str(tiny_checkpoint), bundle_copy, keep=20)
    build(str(tiny_checkpoint), bundle_copy, keep=20, replace=True)
    assert plans(bundle_copy) == ["prunesid-20"]


def test_two_builds_at_once_lose_no_plan(tiny_checkpoint: Path, bundle_copy: Path) -> None:
    """The second to finish says so; what the first added stays."""

    def stage(text: str) -> None:
        if text.startswith("checking"):
            build(str(tiny_checkpoint), bundle_copy, keep=24)

    with pytest.raises(InputError, match=r"another build changed .* run the command again"):
        build(str(tiny_checkpoint), bundle_copy, keep=20, report=BuildProgress(stage=stage))
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


def test_damage_in_what_is_taken_over_is_found(tiny_checkpoint: Path, bundle_copy: Path) -> None:
    for name in ("onnx/prunesid-16.prune.onnx", "onnx/weights/model.safetensors"):
        path = bundle_copy / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BundleError, match=rf"{path.name} does not have the SHA-256 .*--replace"):
            build(str(tiny_checkpoint), bundle_copy, keep=20)
        path.write_bytes(whole)
    assert plans(bundle_copy) == ["prunesid-16", "prunesid-32"]


def test_buffers_that_no_graph_uses_do_not_matter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Older versions of transformers saved the row numbers of the position embedding, as integers."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    save_file(tensors, folder / "model.safetensors")
    for keep in (16, 20):
        build(str(folder), tmp_path / "b", keep=keep)
    assert plans(tmp_path / "b") == ["prunesid-16", "prunesid-20"]


def test_each_plan_keeps_the_command_that_made_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    build(str(tiny_checkpoint), tmp_path / "b", keep=16, command="first")
    build(str(tiny_checkpoint), tmp_path / "b", keep=20, command="second")
    assert [plan.command for plan in open_bundle(tmp_path / "b").manifest.plans] == ["first", "second"]


def test_the_same_files_under_other_names_are_the_same_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where a snapshot is links to blobs named by hash."""
    linked = Path(shutil.copytree(tiny_checkpoint, tmp_path / "snapshot"))
    (linked / "model.safetensors").rename(tmp_path / "0123abcd")
    (linked / "model.safetensors").symlink_to(tmp_path / "0123abcd")
    build(str(tiny_checkpoint), tmp_path / "b", keep=16)
    build(str(linked), tmp_path / "b", keep=20)
    assert plans(tmp_path / "b") == ["prunesid-16", "prunesid-20"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", "[1]"),
        ("preprocessor_config.json", '{"crop_size": {"shortest_edge": 112}}'),
        ("preprocessor_config.json", '{"size": 112, "crop_size": 112, "rescale_factor": "x"}'),
        ("preprocessor_config.json", '{"size": 112, "crop_size": 112, "resample": [3]}'),
        ("preprocessor_config.json", '{"size": 112, "crop_size": 112, "image_mean": ["a", "b", "c"]}'),
        ("generation_config.json", "[1]"),
        ("generation_config.json", '{"eos_token_id": []}'),
        ("generation_config.json", '{"eos_token_id": "</s>"}'),
    ],
)
def test_odd_settings_are_named_and_nothing_is_published(
    tiny_checkpoint: Path, bundle_copy: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "odd"))
    (folder / name).write_text(content)
    before = open_bundle(bundle_copy).manifest
    with pytest.raises((InputError, UsageError), match=name):
        build(str(folder), bundle_copy, keep=16, replace=True)
    assert open_bundle(bundle_copy).manifest == before


@pytest.mark.parametrize("output", [".", "..", "", "file/b", "link"])
def test_outputs_that_cannot_be(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_text("x")
    (here / "link").symlink_to(tmp_path)
    monkeypatch.chdir(here)
    with pytest.raises(UsageError, match="-o/--output"):
        build(str(tiny_checkpoint), output, keep=16)
    assert sorted(path.name for path in here.iterdir()) == ["file", "link"]


def test_the_former_name_of_a_builds_progress() -> None:
    """Callers import it."""
    assert Report is BuildProgress
