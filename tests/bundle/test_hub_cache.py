"""A downloaded bundle in the hub's cache is read where it lies; no other link leads out, and nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_snapshot import HUB_ID, REVISION, cache_bundle, everything

from vtexport.assemble.in_place import in_place
from vtexport.backends.record import RECORD_NAME, read_engines
from vtexport.build import BuildProgress, build
from vtexport.bundle.adaptive import ADAPTIVE_NAME, read_adaptations, write_adaptations
from vtexport.bundle.hub_cache import repository_of
from vtexport.bundle.publish import staged
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import BundleError, UsageError
from vtexport.runtime.adapt import adapt
from vtexport.runtime.pipeline import Pipeline

PLAN, QUESTION = "prunesid-16", "What is this?"
COPY = r"cp -rL, or hf download with --local-dir"


@pytest.fixture
def snapshot(tiny_bundle: Path, tmp_path: Path) -> Path:
    return cache_bundle(tiny_bundle, tmp_path / "hub")


def test_a_snapshot_answers_as_the_bundle_does(tiny_bundle: Path, snapshot: Path, photo: Path) -> None:
    before = everything(snapshot.parents[1])
    for dialect in ("modern", "classic"):
        one, other = (
            Pipeline.open(folder, PLAN, dialect=dialect).generate(photo, QUESTION, max_new_tokens=4)
            for folder in (tiny_bundle, snapshot)
        )
        assert (one.token_ids, one.keep_indices) == (other.token_ids, other.keep_indices)
    assert open_bundle(snapshot).verify() == []
    assert everything(snapshot.parents[1]) == before


def test_what_snapshot_download_gives_opens(snapshot: Path) -> None:
    """huggingface_hub itself finds the made-up cache, so its layout is the library's."""
    from huggingface_hub import snapshot_download

    cache = snapshot.parents[2]
    for revision in (None, "main", REVISION):
        found = snapshot_download(HUB_ID, revision=revision, cache_dir=cache, local_files_only=True)
        assert Path(found) == snapshot
    assert open_bundle(found).verify() == []


def test_a_bundle_in_a_folder_of_the_repository(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = cache_bundle(tiny_bundle, tmp_path, below="bundles/sixteen")
    assert open_bundle(folder).verify() == []


def test_a_cache_behind_a_link(snapshot: Path, tmp_path: Path) -> None:
    """As when the cache was moved to a larger disk."""
    (tmp_path / "moved").symlink_to(tmp_path / "hub")
    assert open_bundle(tmp_path / "moved" / snapshot.relative_to(tmp_path / "hub")).verify() == []
    (tmp_path / "bundle").symlink_to(snapshot)
    assert open_bundle(tmp_path / "bundle").verify() == []


def test_a_damaged_blob_is_found(snapshot: Path) -> None:
    blob = (snapshot / "onnx" / "weights" / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert [problem.partition(" ")[0] for problem in open_bundle(snapshot).verify()] == [
        "onnx/weights/model.safetensors"
    ]


@pytest.mark.parametrize("verb", ["run", "show", "inspect", "doctor", "eval"])
def test_every_verb_that_reads(snapshot: Path, photo: Path, tmp_path: Path, capsys: Any, verb: str) -> None:
    arguments: dict[str, list[object]] = {
        "run": ["--plan", PLAN, "--image", photo, "--prompt", QUESTION, "--max-new-tokens", 2],
        "show": ["--plan", PLAN, "--image", photo, "-o", tmp_path / "kept.png"],
        "inspect": ["--verify"],
        "doctor": [],
        "eval": ["--plan", PLAN, "--limit", 1, "-o", tmp_path / "eval"],
    }
    before = everything(snapshot.parents[1])
    assert main([verb, str(snapshot), *map(str, arguments[verb])]) == 0, capsys.readouterr().err
    assert everything(snapshot.parents[1]) == before


# What a link in the snapshot may not be. Each gets the link, the repository's folder and a folder elsewhere.
Attack = Callable[[Path, Path, Path], None]


def replace_by_link(link: Path, target: str | Path) -> None:
    link.unlink()
    link.symlink_to(target)


def to_a_system_file(link: Path, repository: Path, elsewhere: Path) -> None:
    replace_by_link(link, "/etc/passwd")


def relatively_to_a_file_elsewhere(link: Path, repository: Path, elsewhere: Path) -> None:
    (elsewhere / "secret").write_bytes(link.read_bytes())
    replace_by_link(link, os.path.relpath(elsewhere / "secret", link.parent))


def to_another_repositorys_blobs(link: Path, repository: Path, elsewhere: Path) -> None:
    other = repository.with_name("models--somebody--else") / "blobs"
    other.mkdir(parents=True)
    (other / ("0" * 40)).write_bytes(link.read_bytes())
    replace_by_link(link, os.path.relpath(other / ("0" * 40), link.parent))


def absolutely_to_its_own_blob(link: Path, repository: Path, elsewhere: Path) -> None:
    """As huggingface_hub makes none where the two lie on one disk: it would lead astray in a moved cache."""
    replace_by_link(link, link.resolve())


def through_a_chain(link: Path, repository: Path, elsewhere: Path) -> None:
    """The blob is a link itself."""
    blob = link.resolve()
    blob.rename(elsewhere / "secret")
    blob.symlink_to(elsewhere / "secret")


def through_a_chain_that_ends_among_the_blobs(link: Path, repository: Path, elsewhere: Path) -> None:
    (repository / "blobs" / "further").symlink_to(link.resolve().name)
    replace_by_link(link, os.path.relpath(repository / "blobs" / "further", link.parent))


def by_a_folder_that_is_a_link(link: Path, repository: Path, elsewhere: Path) -> None:
    shutil.copytree(link.parent, elsewhere / "weights")
    shutil.rmtree(link.parent)
    link.parent.symlink_to(elsewhere / "weights")


def to_blobs_that_are_a_link(link: Path, repository: Path, elsewhere: Path) -> None:
    (repository / "blobs").rename(elsewhere / "blobs")
    (repository / "blobs").symlink_to(elsewhere / "blobs")


def below_the_blobs(link: Path, repository: Path, elsewhere: Path) -> None:
    (repository / "blobs" / "sub").mkdir()
    (repository / "blobs" / "sub" / "blob").write_bytes(link.read_bytes())
    replace_by_link(link, os.path.relpath(repository / "blobs" / "sub" / "blob", link.parent))


def to_the_references(link: Path, repository: Path, elsewhere: Path) -> None:
    (repository / "refs" / "other").write_bytes(link.read_bytes())
    replace_by_link(link, os.path.relpath(repository / "refs" / "other", link.parent))


ATTACKS = [
    *(to_a_system_file, relatively_to_a_file_elsewhere, to_another_repositorys_blobs, absolutely_to_its_own_blob),
    *(through_a_chain, through_a_chain_that_ends_among_the_blobs, by_a_folder_that_is_a_link),
    *(to_blobs_that_are_a_link, below_the_blobs, to_the_references),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_other_link_is_followed(snapshot: Path, tmp_path: Path, attack: Attack) -> None:
    (tmp_path / "elsewhere").mkdir()
    attack(snapshot / "onnx" / "weights" / "model.safetensors", snapshot.parents[1], tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=rf"leads out of the bundle, to .*; make a copy .*{COPY}"):
        open_bundle(snapshot)


@pytest.mark.parametrize("name", ["bundles", "models-somebody--llava", "checkpoints--x"])
def test_links_to_blobs_outside_a_cache_are_refused(snapshot: Path, name: str) -> None:
    """The same layout in a folder that does not have the name of a cached repository."""
    moved = snapshot.parents[1].rename(snapshot.parents[2] / name)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(moved / "snapshots" / REVISION)


def test_a_bundle_beside_the_snapshots_is_none_of_the_cache(snapshot: Path) -> None:
    moved = snapshot.rename(snapshot.parents[1] / REVISION)
    for link in [path for path in moved.rglob("*") if path.is_symlink()]:
        replace_by_link(link, os.path.relpath(moved.parent / "blobs" / Path(os.readlink(link)).name, link.parent))  # noqa: PTH115
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(moved)


def test_a_graph_among_links_to_weights(snapshot: Path) -> None:
    """ONNX Runtime refuses the weights' links then, so the reason is said at once."""
    graph = snapshot / "onnx" / "decoder_0.modern.onnx"
    data = graph.read_bytes()
    graph.unlink()
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=rf"decoder_0.modern.onnx is a file among links to weights.*{COPY}"):
        open_bundle(snapshot)


def test_other_files_may_have_been_copied(snapshot: Path) -> None:
    """As huggingface_hub does where a link cannot be made."""
    for name in ("tokenizer.json", "manifest.json"):
        data = (snapshot / name).read_bytes()
        (snapshot / name).unlink()
        (snapshot / name).write_bytes(data)
    assert open_bundle(snapshot).verify() == []


def test_a_cache_without_links(tiny_bundle: Path, snapshot: Path, tiny_checkpoint: Path) -> None:
    """On file systems that have none the snapshot holds the files; still nothing is written there."""
    shutil.rmtree(snapshot)
    shutil.copytree(tiny_bundle, snapshot)
    before = everything(snapshot.parents[1])
    assert open_bundle(snapshot).verify() == []
    with pytest.raises(UsageError, match="lies in the Hugging Face cache"):
        build(str(tiny_checkpoint), snapshot, method="none")
    assert everything(snapshot.parents[1]) == before


def test_nothing_is_built_into_a_cache(snapshot: Path, tiny_checkpoint: Path, capsys: Any, tmp_path: Path) -> None:
    repository = snapshot.parents[1]
    (tmp_path / "link").symlink_to(snapshot)
    before = everything(repository)
    for output in (
        snapshot,
        snapshot / "more",
        repository / "bundle",
        repository / "blobs",
        tmp_path / "link" / "more",
    ):
        for further in ([], ["--replace"], ["--link-weights"]):
            code = main(["build", "--model", str(tiny_checkpoint), "--method", "none", "-o", str(output), *further])
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert (code, "Hugging Face cache (models--somebody--llava-64)" in said, "cp -rL" in said) == (
                2,
                True,
                True,
            )
    assert everything(repository) == before


def test_no_graphs_beside_a_checkpoint_in_a_cache(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On a file system without links, the snapshot holds the weights themselves."""
    folder = cache_bundle(tiny_checkpoint, tmp_path)
    shutil.rmtree(folder)
    shutil.copytree(tiny_checkpoint, folder)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="Hugging Face cache"):
        build(str(folder), folder, method="none", link_weights=True)
    with pytest.raises(UsageError, match="Hugging Face cache"), in_place(folder, replace=False, report=BuildProgress()):
        pytest.fail("must refuse before any work")
    assert everything(tmp_path) == before


def test_no_engines_in_a_cache(snapshot: Path) -> None:
    """`compile` stages its folder before it builds the first engine."""
    target = snapshot / "engines" / "rtx"
    with pytest.raises(UsageError, match="Hugging Face cache"), staged(target, marker=RECORD_NAME):
        pytest.fail("must refuse before any work")
    assert not target.parent.exists()


def test_nothing_is_adapted_in_a_cache(eval_bundle: Path, tmp_path: Path, photo: Path) -> None:
    bundle = open_bundle(cache_bundle(eval_bundle, tmp_path))
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="Hugging Face cache"):
        adapt(bundle, photo.parent)
    with pytest.raises(UsageError, match="Hugging Face cache"):
        write_adaptations(bundle.folder, bundle.manifest, {})
    assert everything(tmp_path) == before


def test_what_images_set_comes_along(eval_bundle: Path, tmp_path: Path, photo: Path) -> None:
    """Adaptive plans that were uploaded are set where they are downloaded; but their file leads nowhere else."""
    copy = Path(shutil.copytree(eval_bundle, tmp_path / "copy"))
    (tmp_path / "images").mkdir()
    shutil.copy(photo, tmp_path / "images")
    made = adapt(open_bundle(copy), tmp_path / "images").adaptations
    snapshot = cache_bundle(copy, tmp_path / "hub")
    opened = open_bundle(snapshot)
    assert read_adaptations(snapshot, opened.manifest) == made
    (name,) = made
    assert Pipeline.open(snapshot, name).encode(photo).route is not None
    replace_by_link(snapshot / ADAPTIVE_NAME, copy / ADAPTIVE_NAME)
    with pytest.raises(BundleError, match=r"adaptive.json leads out of the bundle; delete it and run"):
        read_adaptations(snapshot, opened.manifest)


def test_a_record_of_engines_that_leads_out(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "engines" / "rtx").mkdir(parents=True)
    (tmp_path / RECORD_NAME).write_text("{}")
    (bundle_copy / "engines" / "rtx" / RECORD_NAME).symlink_to(tmp_path / RECORD_NAME)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read_engines(open_bundle(bundle_copy))


def test_links_elsewhere(bundle_copy: Path, tmp_path: Path, photo: Path) -> None:
    """The whole bundle behind a link works; weights moved away and linked are refused with what helps."""
    (tmp_path / "link").symlink_to(bundle_copy)
    assert Pipeline.open(tmp_path / "link", PLAN).generate(photo, QUESTION, max_new_tokens=1).token_ids
    weights = bundle_copy / "onnx" / "weights"
    shutil.move(weights, tmp_path / "larger disk")
    weights.symlink_to(tmp_path / "larger disk")
    with pytest.raises(BundleError, match=rf"model.safetensors leads out of the bundle, to .*{COPY}"):
        Pipeline.open(bundle_copy, PLAN)


def test_where_a_cache_begins(snapshot: Path, tmp_path: Path) -> None:
    repository = snapshot.parents[1]
    for path in (snapshot, snapshot / "onnx" / "none", repository, repository / "blobs"):
        assert repository_of(path) == repository
    for path in (tmp_path, repository.parent, tmp_path / "none"):
        assert repository_of(path) is None
