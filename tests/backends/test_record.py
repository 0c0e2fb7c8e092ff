"""Reading engines.json: whatever stands in it, a record of files in the bundle or one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vtexport.backends.record import read_engines
from vtexport.bundle.manifest import MAX_MANIFEST_BYTES
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.cli.main import main
from vtexport.errors import BundleError

SHA256 = hashlib.sha256(b"12345").hexdigest()


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    """A bundle with a folder for engines, and a file beside the bundle that is none of it."""
    (bundle_copy / "engines" / "rtx").mkdir(parents=True)
    (bundle_copy / "engines" / "rtx" / "e.engine").write_bytes(b"12345")
    (bundle_copy.parent / "outside").write_bytes(b"12345")
    return open_bundle(bundle_copy)


def record(bundle: Bundle) -> dict[str, Any]:
    digest = hashlib.sha256((bundle.folder / "manifest.json").read_bytes()).hexdigest()
    profile = {"name": "decode", "shapes": {"x": [[1], [1], [1]]}}
    engine = {"file": "e.engine", "bytes": 5, "sha256": SHA256, "profiles": [profile], "peak_memory_bytes": 1}
    return {
        "schema_version": 2, "target": "rtx", "builder": "b", "compute_capabilities": [], "precision": "float16",
        "manifest_sha256": digest, "engines": {"e": engine},
    }  # fmt: skip


def write(bundle: Bundle, content: Any) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (bundle.folder / "engines" / "rtx" / "engines.json").write_bytes(text)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in it that holds no other, and to every one that does."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, child in items for way in leaves(child, (*path, key)))]


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_value_is_read_or_refused(bundle: Bundle, data: st.DataObject) -> None:
    content = record(bundle)
    way = data.draw(st.sampled_from(leaves(content)))
    value = data.draw(_anything | st.sampled_from(["../../../outside", "/etc/passwd", 2**63, 10**400]))
    if not way:
        content = value
    else:
        place: Any = content
        for key in way[:-1]:
            place = place[key]
        place[way[-1]] = value
    write(bundle, content)
    with contextlib.suppress(BundleError):
        (read,) = read_engines(bundle)
        assert {engine.file for engine in read.engines.values()} <= {"e.engine"}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=20) | st.text(min_size=250, max_size=400))
@example(name="../../../outside")
@example(name="..\\..\\..\\outside")
@example(name="link")
@example(name="folder/link")
@example(name="e.engine\0")
@example(name="\ud800")
def test_no_engine_lies_outside(bundle: Bundle, name: str) -> None:
    folder = bundle.folder / "engines" / "rtx"
    if not (folder / "folder").exists():
        (folder / "folder").mkdir()
        for link in ("link", "folder/link"):
            (folder / link).symlink_to(bundle.folder.parent / "outside")
    content = record(bundle)
    content["engines"]["e"]["file"] = name
    write(bundle, content)
    with pytest.raises(BundleError) as caught:
        read_engines(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 2, "schema_version": 1}']
)
def test_what_is_no_record(bundle: Bundle, content: bytes) -> None:
    write(bundle, content)
    with pytest.raises(BundleError, match="is not a record of engines"):
        read_engines(bundle)


def test_a_record_without_engines_is_none(bundle: Bundle) -> None:
    write(bundle, record(bundle) | {"engines": {}})
    with pytest.raises(BundleError, match="is not a record of engines"):
        read_engines(bundle)


def test_an_endless_record_is_not_read(bundle: Bundle) -> None:
    write(bundle, b"")
    with (bundle.folder / "engines" / "rtx" / "engines.json").open("r+b") as file:
        file.truncate(2**40)  # a file that is all hole
    with pytest.raises(BundleError, match=r"is not a record of engines .*it has more than"):
        read_engines(bundle)
    assert MAX_MANIFEST_BYTES < 2**30


def test_engines_in_a_folder_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.folder / "engines" / "rtx"
    write(bundle, record(bundle))
    assert len(read_engines(bundle)) == 1
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"engines.json leads out of the bundle; run `vtexport compile` again"):
        read_engines(bundle)


def test_inspect_verifies_engines(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    write(bundle, record(bundle))
    assert main(["inspect", str(bundle.folder), "--verify"]) == 0
    files = len(bundle.manifest.files)
    assert capsys.readouterr().out.endswith(
        f"verified: all {files} files have the SHA-256 that the manifest states\n"
        "verified: 1 engine with the SHA-256 that engines.json states\n"
    )
    (bundle.folder / "engines" / "rtx" / "e.engine").write_bytes(b"12344")
    assert main(["inspect", str(bundle.folder)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle.folder), "--verify"]) == 4
    shown = capsys.readouterr()
    engine = bundle.folder / "engines" / "rtx" / "e.engine"
    problem = f"{engine} does not have the SHA-256 that engines.json states; run `vtexport compile` again"
    assert shown.err == f"vtexport: {problem}\n"
    assert "verified" not in shown.out
    assert main(["inspect", str(bundle.folder), "--verify", "--json"]) == 4
    described = json.loads(capsys.readouterr().out)
    assert (described["verified"], described["problems"]) == (False, [problem])


def test_inspect_describes_a_bundle_with_engines_of_another_manifest(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle.folder)]) == 0
    whole = capsys.readouterr().out
    write(bundle, record(bundle) | {"manifest_sha256": "0" * 64})
    path = bundle.folder / "engines" / "rtx" / "engines.json"
    sentence = f"{path} is of engines that were built from another manifest; run `vtexport compile` again"
    assert main(["inspect", str(bundle.folder)]) == 0
    assert capsys.readouterr().out == f"{whole}\n{sentence}\n"
    assert main(["inspect", str(bundle.folder), "--verify"]) == 4
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{whole}\n{sentence}\n", f"vtexport: {sentence}\n")
    for arguments, code, problems in (((), 0, None), (("--verify",), 4, [sentence])):
        assert main(["inspect", str(bundle.folder), "--json", *arguments]) == code
        described = json.loads(capsys.readouterr().out)
        assert (described["engines"], described["unusable_engines"]) == ([], [sentence])
        assert described["problems"] == problems


def test_inspect_describes_a_bundle_whose_engines_are_not_there(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle.folder)]) == 0
    whole = capsys.readouterr().out
    write(bundle, record(bundle))
    (bundle.folder / "engines" / "rtx" / "e.engine").unlink()
    assert main(["inspect", str(bundle.folder)]) == 4
    shown = capsys.readouterr()
    assert shown.out == whole
    assert "names 'e.engine', which is not there with 5 bytes; run `vtexport compile` again" in shown.err
