"""Sentences that quote a library stay short, whatever it says, and end with a step that helps."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vtexport
from vtexport.backends.record import read_engines
from vtexport.backends.trt import compile as trt_compile
from vtexport.bundle.adaptive import read_adaptations
from vtexport.bundle.reader import open_bundle
from vtexport.checkpoint.hub import fetch_snapshot
from vtexport.checkpoint.model_config import read_model_config
from vtexport.cli.explain import explain
from vtexport.errors import VtexportError, quoted
from vtexport.plugins import build as plugins_build
from vtexport.plugins.native import Library
from vtexport.processing.tokenizer import load_tokenizer
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.prompt import PromptReader

MOST = 300  # characters of a sentence that quotes
LONG = "abcdefghi " * 1000


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The small files of a checkpoint, for a test to damage."""
    folder = tmp_path / "c"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def unknown_text_model(folder: Path) -> None:
    """transformers names every model it knows: 11,000 characters."""
    change(folder / "config.json", text_config={"model_type": "no-such-model"})
    read_model_config(folder)


def value_of_the_wrong_type(folder: Path) -> None:
    """huggingface_hub quotes the value, and on a second line once more."""
    change(folder / "config.json", vision_feature_layer=LONG)
    read_model_config(folder)


def unknown_activation(folder: Path) -> None:
    change(folder / "config.json", projector_hidden_act=LONG)
    read_model_config(folder)


def unknown_family(folder: Path) -> None:
    change(folder / "config.json", model_type=LONG)
    read_model_config(folder)


def damaged_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer.json", model={"type": LONG})
    load_tokenizer(folder)


def missing_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    load_tokenizer(folder)


@pytest.mark.parametrize(
    "provoke",
    [
        *(unknown_text_model, value_of_the_wrong_type, unknown_activation, unknown_family),
        *(damaged_tokenizer, missing_tokenizer),
    ],
    ids=lambda provoke: provoke.__name__,
)
def test_what_a_checkpoint_provokes(checkpoint: Path, provoke: Callable[[Path], object]) -> None:
    with pytest.raises(VtexportError) as caught:
        provoke(checkpoint)
    check_sentence(caught.value)


def wrong_manifest(bundle: Path) -> None:
    change(bundle / "manifest.json", precision=LONG)
    open_bundle(bundle)


def manifest_without_a_file(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(bundle / "manifest.json", text={**manifest["text"], "tokenizer": LONG})
    open_bundle(bundle)


def wrong_tokenizer(bundle: Path) -> None:
    replace(bundle, "tokenizer.json", json.dumps({"version": "1.0", "model": {"type": LONG}}))
    PromptReader(open_bundle(bundle))


def wrong_template(bundle: Path) -> None:
    replace(bundle, "chat_template.jinja", "{{ messages | " + LONG.replace(" ", "") + " }}")
    PromptReader(open_bundle(bundle))


def template_that_refuses(bundle: Path) -> None:
    replace(bundle, "chat_template.jinja", "{{ raise_exception('" + LONG + "') }}")
    PromptReader(open_bundle(bundle)).render("x?")


def wrong_graph(bundle: Path) -> None:
    import onnx

    node = onnx.helper.make_node(LONG.replace(" ", ""), ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]))
    replace(bundle, "onnx/vision.cls_attention.modern.onnx", model.SerializeToString())
    Pipeline.open(bundle, "prunesid-16")


def wrong_adaptation(bundle: Path) -> None:
    (bundle / "adaptive.json").write_text(json.dumps({"schema_version": 2, "source_sha256": LONG, "adaptations": {}}))
    opened = open_bundle(bundle)
    read_adaptations(bundle, opened.manifest)


def wrong_engines(bundle: Path) -> None:
    (bundle / "engines" / "rtx").mkdir(parents=True)
    (bundle / "engines" / "rtx" / "engines.json").write_text(json.dumps({"schema_version": LONG}))
    read_engines(open_bundle(bundle))


def replace(bundle: Path, name: str, content: str | bytes) -> None:
    """Another content that the manifest agrees with."""
    data = content.encode() if isinstance(content, str) else content
    (bundle / name).write_bytes(data)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    change(bundle / "manifest.json", files={**files, name: {**files[name], "bytes": len(data)}})


@pytest.mark.parametrize(
    "provoke",
    [
        *(wrong_manifest, manifest_without_a_file, wrong_tokenizer, wrong_template, template_that_refuses),
        *(wrong_graph, wrong_adaptation, wrong_engines),
    ],
    ids=lambda provoke: provoke.__name__,
)
def test_what_a_bundle_provokes(bundle_copy: Path, provoke: Callable[[Path], object]) -> None:
    with pytest.raises(VtexportError) as caught:
        provoke(bundle_copy)
    check_sentence(caught.value)


def test_what_the_hub_provokes(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(LONG)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *arguments, **options: None)
    with pytest.raises(VtexportError) as caught:
        fetch_snapshot("owner/name", None, with_weights=False, notify=print)
    check_sentence(caught.value)


def test_what_an_unreachable_hub_provokes(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(LONG)

    def not_cached(*arguments: Any, **options: Any) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError(LONG)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(VtexportError) as caught:
        fetch_snapshot("owner/name", None, with_weights=False, notify=print)
    check_sentence(caught.value)


def test_what_compilers_provoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sentence has the beginning; all of it, with the command, is in a file."""
    monkeypatch.setattr(plugins_build, "_work_folder", lambda: tmp_path)
    with pytest.raises(VtexportError) as caught:
        plugins_build._run(["sh", "-c", f"echo 'a.cpp:1: error: {LONG}'; exit 1"], "compiling")
    check_sentence(caught.value)
    written = (tmp_path / "failed.log").read_text()
    assert LONG in written
    assert written.startswith("sh -c ")


def test_what_a_library_provokes(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_text(LONG)
    with pytest.raises(VtexportError) as caught:
        Library(tmp_path / "lib.so", "vtx_cpu_")
    check_sentence(caught.value)


@pytest.mark.parametrize("told", [LONG, f"std::bad_alloc {LONG}", "", f"one\n{LONG}"])
def test_what_an_engines_builder_provokes(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sentence(VtexportError(trt_compile.describe_ending("decoder_0.modern", 1, told)))
    if not told:
        return
    outcome = json.dumps({"problems": [told], "version": "tensorrt_rtx 1.7.1.116"})
    monkeypatch.setattr(trt_compile, "_WORKER", ["sh", "-c", f"cat > /dev/null; printf '%s' '{outcome}'"])
    job = trt_compile.Job(
        module="tensorrt_rtx", graph="", engine="", profiles=[], compute_capabilities=[], parent=os.getpid()
    )
    with pytest.raises(VtexportError) as caught:
        trt_compile.build_engine(job, "decoder_0.modern")
    check_sentence(caught.value)


def check_sentence(error: VtexportError) -> None:
    text = str(error)
    assert len(text) <= MOST, f"{len(text)} characters: {text}"
    assert text.isprintable()
    assert ";" in text or ": end other programs" in text, f"no step that helps: {text}"


@given(text=st.text(max_size=2000), beside=st.text(max_size=400), limit=st.integers(60, 400))
def test_a_quotation_fits_and_is_never_empty(text: str, beside: str, limit: int) -> None:
    for error in (text, ValueError(text), OSError(5, text)):
        said = quoted(error, beside, limit=limit)
        assert 0 < len(said) <= max(60, limit - len(beside))
        assert said.isprintable()
        assert said.encode()


@given(word=st.text("abc", min_size=1, max_size=50))
def test_short_texts_are_quoted_whole(word: str) -> None:
    assert quoted(ValueError(f"\n  {word} \nmore")) == word
    assert quoted(f"{word}:\n\n  {word}\n") == f"{word}: {word}"
    assert quoted(ValueError()) == "ValueError"


FOREIGN: list[Callable[[str], BaseException]] = [
    *(ValueError, KeyError, RuntimeError, MemoryError, RecursionError, UnicodeError),
    *(lambda text: OSError(5, text), lambda text: OSError(text), lambda text: OSError(errno.ENAMETOOLONG, text)),
    lambda text: UnicodeEncodeError("utf-8", text + "\udce9", len(text), len(text) + 1, text),
    lambda text: UnicodeDecodeError("utf-8", b"\xe9", 0, 1, text),
    lambda text: np.exceptions.AxisError(text),
]


@given(make=st.sampled_from(FOREIGN), text=st.text(max_size=3000))
def test_whatever_ends_a_command_is_one_short_line(make: Callable[[str], BaseException], text: str) -> None:
    sentence, code = explain(make(text))
    assert code == 1
    assert sentence.isprintable()
    assert len(sentence) <= MOST
    assert ";" in sentence


SYSTEM = [
    ("ENAMETOOLONG", "choose a shorter name"),
    ("ELOOP", "links lead in a circle"),
    ("EMFILE", "ulimit -n"),
    ("EIO", "check it"),
    ("ENODEV", "ordinary disk"),
    ("ENOSPC", "the disk is full"),
    ("EDQUOT", "the disk is full"),
    ("EACCES", "no permission for /x"),
    ("EROFS", "no permission for /x"),
    ("ENOENT", "check the name"),
    ("ENOTDIR", "check the path"),
    ("EISDIR", "give a file"),
    ("ENOMEM", "the memory does not suffice"),
    ("ESTALE", "mount the disk again"),
]


@pytest.mark.parametrize(("name", "step"), SYSTEM)
def test_system_errors_have_their_step(name: str, step: str) -> None:
    number = getattr(errno, name)
    sentence, code = explain(OSError(number, os.strerror(number), "/x"))
    assert code == 1
    assert "/x" in sentence
    assert step in sentence
    assert "unexpected" not in sentence


def test_every_system_error_has_a_sentence() -> None:
    for number in errno.errorcode:
        sentence, _ = explain(OSError(number, os.strerror(number), "/x"))
        assert "/x" in sentence
        assert "unexpected" not in sentence


@pytest.mark.parametrize(
    ("error", "begins", "code"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (MemoryError(), "the memory does not suffice (MemoryError); ", 1),
        (RecursionError("maximum recursion depth exceeded"), "something that was given is nested too deeply", 1),
        (UnicodeEncodeError("utf-8", "a\udce9", 1, 2, "no"), "a name, an argument or a file is no valid text", 1),
    ],
)
def test_errors_of_the_interpreter(error: BaseException, begins: str, code: int) -> None:
    sentence, got = explain(error)
    assert (sentence[: len(begins)], got) == (begins, code)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    """From end to end: what the system refuses comes out as a sentence."""
    done = subprocess.run([*vtexport_command(), "inspect", str(tmp_path / ("x" * 300))], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("choose a shorter name\n") or "is not a folder" in done.stderr


def vtexport_command() -> list[str]:

    return [sys.executable, "-m", "vtexport"]


SHORT = {"strerror", "filename", "name", "errno"}  # of an exception, what may stand in a sentence as it is


def sentences() -> Iterator[tuple[str, ast.JoinedStr]]:
    """Every f-string of the package that is raised, with its place."""
    for path in Path(vtexport.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                for part in ast.walk(node.exc):
                    if isinstance(part, ast.JoinedStr):
                        yield f"{path.name}:{part.lineno}", part


def quotations(part: ast.AST) -> list[ast.Call]:
    called = [node for node in ast.walk(part) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [call for call in called if call.func.id in {"quoted", "_reason", "_next_step"}]  # type: ignore[attr-defined]


def test_no_sentence_holds_a_foreign_text_whole() -> None:
    """In every module: what is raised names an exception by `quoted` alone, or one of its short parts."""
    found = []
    for place, text in sentences():
        fine = {id(node) for call in quotations(text) for node in ast.walk(call)}
        fine |= {id(n.value) for n in ast.walk(text) if isinstance(n, ast.Attribute) and n.attr in SHORT}
        names = [node for node in ast.walk(text) if isinstance(node, ast.Name) and id(node) not in fine]
        if any(node.id in {"error", "exception", "e"} for node in names):
            found.append(place)
    assert found == []


def test_no_sentence_is_too_long_by_its_own_words() -> None:
    """Its words and its quotation, with a path of 100 characters, stay under the limit."""
    counted = 0
    for place, text in sentences():
        for call in quotations(text)[:1]:
            limits = [ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "limit"]
            words = sum(len(part.value) for part in text.values if isinstance(part, ast.Constant))
            assert words + (limits[0] if limits else 180) <= MOST, place
            counted += 1
    assert counted > 20
