"""--link-weights: bundles without a copy of the weights, and a sentence where that cannot be."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.assemble import in_place, link
from vtexport.build import BuildProgress, build
from vtexport.bundle.reader import open_bundle
from vtexport.checkpoint.safetensors_index import read_index
from vtexport.cli.main import main
from vtexport.dtypes import PRECISIONS
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a build may put its graphs into."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def answer(bundle: Path, plan: str) -> list[int]:
    return Pipeline.open(bundle, plan).generate(PHOTO, "What is this?", max_new_tokens=8).token_ids


def plans(bundle: Path) -> list[str]:
    return [plan.name for plan in open_bundle(bundle).manifest.plans]


def ours(folder: Path) -> set[str]:
    """Files that builds have put there, by relative name."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if "vtx" in name}


def test_graphs_beside_the_weights(tiny_bundle: Path, folder: Path) -> None:
    before = content(folder)
    build(str(folder), folder, keep=16, link_weights=True)
    build(str(folder), folder, keep=32, link_weights=True)
    assert before.items() <= content(folder).items(), "the checkpoint's own files stay as they are"
    bundle = open_bundle(folder)
    assert bundle.verify() == []
    assert plans(folder) == ["prunesid-16", "prunesid-32"]
    assert ours(folder) == {name for name in bundle.manifest.files if "vtx" in name}
    assert before.keys() <= bundle.manifest.files.keys(), "so that a change of any of them is found"
    for plan in plans(folder):
        assert answer(folder, plan) == answer(tiny_bundle, plan)
    for graph in bundle.manifest.graphs.values():
        path = bundle.path(graph.file)
        if ".native." not in graph.file:
            onnx.checker.check_model(str(path))
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            places = {entry.value for entry in tensor.external_data if entry.key == "location"}
            assert places <= {"model.safetensors"}


def test_the_command_line_takes_such_a_folder(folder: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    build_it = ["build", "--model", str(folder), "--keep", "16", "--link-weights", "-o", str(folder)]
    assert main(build_it) == 0
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert main(["run", str(folder), "--image", str(photo), "--prompt", "x?", "--max-new-tokens", "2"]) == 0
    assert main(["show", str(folder), "--image", str(photo), "-o", str(tmp_path / "kept.jpg")]) == 0
    # a build that would exchange the folder must not, with or without --replace
    for extra in ([], ["--replace"]):
        capsys.readouterr()
        assert main(["build", "--model", str(folder), "--keep", "16", "-o", str(folder), *extra]) == 2
        assert "holds a checkpoint's weights (model.safetensors)" in capsys.readouterr().err
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    capsys.readouterr()
    assert main(["inspect", str(folder), "--verify"]) == 4
    assert "model.safetensors does not have the SHA-256" in capsys.readouterr().err
    weights.write_bytes(whole[:-1])
    assert main(["inspect", str(folder)]) == 4


def test_a_changed_checkpoint_takes_no_plans_but_replaces(folder: Path, tmp_path: Path) -> None:
    build(str(folder), folder, keep=16, link_weights=True)
    (folder / "engines" / "rtx").mkdir(parents=True)
    (folder / "engines" / "rtx" / "engines.json").write_text("{}")
    other = save_model(make_model(make_config(), seed=9), tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    before = ours(folder)
    with pytest.raises(UsageError, match=r"model.safetensors differs.*--replace"):
        build(str(folder), folder, keep=20, link_weights=True)
    assert ours(folder) == before
    notes: list[str] = []
    build(str(folder), folder, keep=20, link_weights=True, replace=True, report=BuildProgress(note=notes.append))
    assert plans(folder) == ["prunesid-20"]
    assert open_bundle(folder).verify() == []
    assert ours(folder) == {name for name in open_bundle(folder).manifest.files if "vtx" in name}
    assert not (folder / "engines").exists()
    assert any("engines" in note for note in notes)


@pytest.mark.parametrize("stage", ["reading", "writing", "exporting", "checking"])
def test_a_build_that_fails_leaves_the_old_bundle(folder: Path, stage: str) -> None:
    build(str(folder), folder, keep=16, link_weights=True)
    before = sorted(folder.rglob("*")), content(folder)

    def fail(text: str) -> None:
        if text.startswith(stage) and not text.startswith("reading the checkpoint"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        build(str(folder), folder, keep=20, link_weights=True, report=BuildProgress(stage=fail))
    assert (sorted(folder.rglob("*")), content(folder)) == before


def test_a_checkpoint_that_changes_while_it_is_read(folder: Path) -> None:
    """Its files are hashed before they are read and afterwards, as for a bundle of its own."""

    def change(text: str) -> None:
        if text.startswith("writing tokenizer"):
            (folder / "preprocessor_config.json").write_text("{}")

    with pytest.raises(InputError, match="changed while it was read; restore the checkpoint and build again"):
        build(str(folder), folder, keep=16, link_weights=True, report=BuildProgress(stage=change))
    assert not ours(folder)
    assert not (folder / "manifest.json").exists()


def test_failing_at_the_manifest_leaves_the_old_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(str(folder), folder, keep=16, link_weights=True)
    before = sorted(folder.rglob("*")), content(folder)

    def refuse(*_: object) -> None:
        raise BundleError("damaged")

    monkeypatch.setattr(in_place, "check_files", refuse)
    with pytest.raises(BundleError, match="damaged"):
        build(str(folder), folder, keep=20, link_weights=True)
    assert (sorted(folder.rglob("*")), content(folder)) == before


@pytest.mark.parametrize(("sent", "moment"), [(signal.SIGKILL, 0.3), (signal.SIGKILL, 2.0), (signal.SIGINT, 0.5)])
def test_killed_in_place(folder: Path, sent: signal.Signals, moment: float) -> None:
    build(str(folder), folder, keep=16, link_weights=True)
    before, names = (folder / "manifest.json").read_bytes(), ours(folder)
    command = [sys.executable, "-m", "vtexport", "build", "--model", str(folder), "--keep", "20", "--link-weights"]
    process = subprocess.Popen([*command, "-o", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while ours(folder) == names and time.monotonic() < deadline:  # until the first of its files is there
        time.sleep(0.02)
    time.sleep(moment)
    process.send_signal(sent)
    process.wait(60)
    assert open_bundle(folder).verify() == []
    finished = "prunesid-20" in plans(folder)
    assert finished or (folder / "manifest.json").read_bytes() == before
    if sent == signal.SIGINT and not finished:
        assert ours(folder) == names
    build(str(folder), folder, keep=24, link_weights=True)
    assert ours(folder) == {name for name in open_bundle(folder).manifest.files if "vtx" in name}
    assert open_bundle(folder).verify() == []


def test_two_builds_in_one_folder(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is building"):
            build(str(folder), folder, keep=16, link_weights=True)
    finally:
        os.close(held)
    build(str(folder), folder, keep=16, link_weights=True)


@pytest.mark.parametrize("text", ["{}", '{"schema_version": 1}', "not json"])
def test_a_manifest_of_somebody_else_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    before = content(folder)
    with pytest.raises(UsageError, match=r"manifest.json is not what --link-weights writes"):
        build(str(folder), folder, keep=16, link_weights=True, replace=True)
    assert content(folder) == before


def test_a_manifest_of_a_whole_bundle_is_refused(folder: Path, tiny_bundle: Path) -> None:
    shutil.copy(tiny_bundle / "manifest.json", folder)
    with pytest.raises(UsageError, match="a bundle with weights of its own"):
        build(str(folder), folder, keep=16, link_weights=True, replace=True)


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    before = content(folder)
    with pytest.raises(UsageError, match=r"are links to .*blob, and ONNX Runtime and onnx.checker refuse"):
        build(str(folder), folder, keep=16, link_weights=True)
    (folder / "model.safetensors").unlink()
    os.link(blob, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"has 2 names \(hard links\), and onnx.checker and onnx_ir refuse"):
        build(str(folder), folder, keep=16, link_weights=True)
    assert content(folder) == before


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def refuse(path: Path, data: bytes) -> int:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        build(str(folder), folder, keep=16, link_weights=True)


@pytest.mark.parametrize(
    ("dtype", "precision", "step"),
    [
        ("float32", "fp16", "give --precision fp32"),
        ("float16", "fp32", "give --precision fp16"),
        ("bfloat16", "fp16", "give --precision bf16"),
        ("bfloat16", "fp32", "give --precision bf16"),
        ("float16", "bf16", "give --precision fp16"),
    ],
)
def test_another_precision_is_refused(tmp_path: Path, dtype: str, precision: str, step: str) -> None:
    import torch

    folder = save_model(make_model(make_config()).to(getattr(torch, dtype)), tmp_path / "c")
    with pytest.raises(UsageError, match=rf"weights in {dtype}, so --precision {precision} .*{step}$"):
        build(str(folder), tmp_path / "b", keep=16, precision=precision, link_weights=True)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    link.check_linkable(read_index(folder), PRECISIONS[step.rpartition(" ")[2]].name)


def clone(descriptor: int, request: int, source: int) -> int:
    """Does what the system call does, by a copy."""
    assert request == 0x40049409
    size = os.fstat(source).st_size
    assert os.sendfile(descriptor, source, 0, size) == size
    return 0


def test_reflinked(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is the one that a copy gives."""
    monkeypatch.setattr(link.fcntl, "ioctl", clone)
    bundle = build(str(tiny_checkpoint), tmp_path / "b", keep=[16, 32], link_weights=True)
    assert bundle.verify() == []
    assert bundle.manifest.files == open_bundle(tiny_bundle).manifest.files


@pytest.mark.parametrize(
    ("code", "name"), [(errno.EOPNOTSUPP, "EOPNOTSUPP"), (errno.EXDEV, "EXDEV"), (errno.EINVAL, "EINVAL")]
)
def test_no_reflink(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(link.fcntl, "ioctl", refuse)
    with pytest.raises(UsageError, match=rf"cannot be reflinked to .* \({name}\), .* to copy .* MB"):
        build(str(tiny_checkpoint), tmp_path / "b", keep=16, link_weights=True)
    assert list(tmp_path.iterdir()) == []


def test_other_failures_of_the_system_call_are_what_they_are(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(link.fcntl, "ioctl", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        build(str(tiny_checkpoint), tmp_path / "b", keep=16, link_weights=True)


@pytest.fixture(params=["ext4", "btrfs", "xfs"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A file system of that kind in a file; needs the right to mount."""
    kind, image, point = request.param, tmp_path / "image", tmp_path / "mnt"
    make = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if make is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    with image.open("wb") as file:
        file.truncate(400 * 2**20)
    point.mkdir()
    subprocess.run([make, "-q", str(image)], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield kind, point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_real_file_systems(tiny_checkpoint: Path, tiny_bundle: Path, mounted: tuple[str, Path]) -> None:
    kind, point = mounted
    folder = Path(shutil.copytree(tiny_checkpoint, point / "checkpoint"))
    if kind == "ext4":
        with pytest.raises(UsageError, match=r"\(EOPNOTSUPP\)"):
            build(str(folder), point / "b", keep=16, link_weights=True)
        assert not (point / "b").exists()
        return
    bundle = build(str(folder), point / "b", keep=[16, 32], link_weights=True)
    assert bundle.verify() == []
    assert bundle.manifest.files == open_bundle(tiny_bundle).manifest.files
    weights = bundle.path("onnx/weights/model.safetensors")
    assert weights.stat().st_nlink == 1
    # shared blocks, yet a file of its own: what happens to the checkpoint does not reach the bundle
    (folder / "model.safetensors").write_bytes(b"gone")
    assert bundle.verify() == []
