"""Both forms of a writer do what the recipe asks of one: the same calls give a bundle's files under their names."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vtexport.assemble.describe import describe_source
from vtexport.assemble.in_place import InPlace
from vtexport.assemble.progress import BuildProgress
from vtexport.assemble.staged import Staged
from vtexport.assemble.writer import Writer, open_writer
from vtexport.checkpoint.resolve import Checkpoint, open_checkpoint
from vtexport.processing.chat_template import ChatTemplate
from vtexport.processing.text import TextFiles

TEXTS = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ 1 }}\r\n"}
GRAPH = b"not looked into"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(str(shutil.copytree(tiny_checkpoint, tmp_path / "work" / "checkpoint")))


@pytest.fixture(params=[False, True], ids=["staged", "in place"])
def opened(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> AbstractContextManager[Writer]:
    destination = checkpoint.folder if request.param else checkpoint.folder.with_name("bundle")
    return open_writer(
        destination, checkpoint, "float32", link_weights=request.param, replace=False, report=BuildProgress()
    )


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(writer: Writer, checkpoint: Checkpoint) -> dict[str, str]:
    """The recipe without its graphs: names of the files as the manifest would have them, by what they are."""
    placed = writer.place_weights(checkpoint, "float32")
    name, weight = next(iter(placed.tensors.items()))
    stored = checkpoint.tensors[name]
    data = (writer.weights_base / (weight.file if weight.beside else f"weights/{weight.file}")).read_bytes()
    assert data[weight.offset :][: weight.nbytes] == stored.file.read_bytes()[stored.offset :][: stored.nbytes]
    tokenizer, template = (text.decode() for text in TEXTS.values())
    files = TextFiles("<image>", None, {}, tokenizer, ChatTemplate(template, "chat_template.jinja"), [])
    writer.put_texts(files, checkpoint.folder)
    graph = writer.graphs / f"{writer.graphs_prefix}plan.prune.onnx"
    graph.write_bytes(GRAPH)
    writer.take_over([])
    found = {each: writer.settle(writer.texts / each) for each in TEXTS}
    return {**found, "graph": writer.settle(graph), "weights": writer.weights_prefix + weight.file}


def test_files_are_described_under_the_names_they_keep(
    opened: AbstractContextManager[Writer], checkpoint: Checkpoint
) -> None:
    (path,) = checkpoint.weight_files
    weights = path.read_bytes()
    with opened as writer:
        names = fill(writer, checkpoint)
        files = writer.describe(describe_source(checkpoint, {path.name: hashlib.sha256(weights).hexdigest()}))
    for what, content in {**TEXTS, "graph": GRAPH, "weights": weights}.items():
        file = files[names[what]]
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest()), what
    assert "preprocessor_config.json" in files, "the checkpoint's settings come along"


def test_nothing_stays_of_a_block_that_fails(opened: AbstractContextManager[Writer], checkpoint: Checkpoint) -> None:
    work = checkpoint.folder.parent
    before = everything(work)
    with contextlib.suppress(InterruptedError), opened as writer:
        fill(writer, checkpoint)
        assert everything(work) != before
        raise InterruptedError
    assert everything(work) == before
    assert [path.name for path in work.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("link_weights", [False, True])
def test_in_place_is_where_the_weights_are_linked_and_lie(checkpoint: Checkpoint, link_weights: bool) -> None:
    """By whatever name the folder is given; without links it is refused (tests/scenarios/test_link_weights.py)."""
    forms = {checkpoint.folder.with_name("bundle"): Staged}
    if link_weights:
        forms[checkpoint.folder / ".." / "checkpoint"] = InPlace
    for destination, form in forms.items():
        with open_writer(
            destination, checkpoint, "float32", link_weights=link_weights, replace=False, report=BuildProgress()
        ) as writer:
            assert type(writer) is form
