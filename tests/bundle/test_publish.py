"""A bundle is in place whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from vtexport.bundle import publish
from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.bundle.publish import recover, staged
from vtexport.errors import InputError, UsageError

_NOBODY = 65534


def write(folder: Path, text: str) -> None:
    (folder / MANIFEST_NAME).write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text(text)


def content(folder: Path) -> tuple[str, str]:
    return (folder / MANIFEST_NAME).read_text(), (folder / "sub" / "data").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publishes_and_replaces(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "b") as folder:
            write(folder, text)
        assert content(tmp_path / "b") == (text, text)
    assert names(tmp_path) == ["b"]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        with staged(tmp_path / "b") as folder:
            write(folder, "x")
    finally:
        os.umask(previous)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "b" / "sub" / "data").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_bundle_and_no_litter(tmp_path: Path, error: type[BaseException]) -> None:
    with staged(tmp_path / "b") as folder:
        write(folder, "old")
    with pytest.raises(error), staged(tmp_path / "b") as folder:  # noqa: PT012 (the block is what is interrupted)
        write(folder, "new")
        raise error
    assert content(tmp_path / "b") == ("old", "old")
    assert names(tmp_path) == ["b"]


def test_a_file_system_that_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_rename_exchange", lambda first, second: False)
    for text in ("old", "new"):
        with staged(tmp_path / "b") as folder:
            write(folder, text)
    assert content(tmp_path / "b") == ("new", "new")
    assert names(tmp_path) == ["b"]


def test_recovers_a_bundle_that_was_moved_aside(tmp_path: Path) -> None:
    with staged(tmp_path / "b") as folder:
        write(folder, "old")
    (tmp_path / "b").rename(tmp_path / ".b.previous-abc")  # where a writer that died in between leaves it
    recover(tmp_path / "b")
    assert content(tmp_path / "b") == ("old", "old")
    assert names(tmp_path) == ["b"]


def test_does_not_touch_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name, message in (("photos", "not a bundle"), ("file", "not a folder"), ("link", "is a link")):
        with pytest.raises(UsageError, match=message), staged(tmp_path / name):
            pytest.fail("must refuse before any work")
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"


def test_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with staged(tmp_path / "b") as folder:
        write(folder, "x")
    assert content(tmp_path / "b") == ("x", "x")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"is a file, so .* cannot be made in it"), staged(tmp_path / "file" / "b"):
        pass


def test_no_permission_is_one_sentence(tmp_path: Path) -> None:
    """Root may write everywhere, so a child that is somebody else tries."""
    with tempfile.TemporaryDirectory() as base:  # tmp_path can be entered by its owner alone
        folder = Path(base)
        (folder / "b").mkdir()
        (folder / "b" / MANIFEST_NAME).write_text("old")
        folder.chmod(0o555)
        child = os.fork()
        if child == 0:
            refused = False
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(_NOBODY)
                    os.setuid(_NOBODY)
                try:
                    with staged(folder / "b"):
                        pass
                except InputError as error:
                    refused = (
                        str(error) == f"{folder} cannot be written (Permission denied); choose another -o/--output"
                    )
            finally:
                os._exit(0 if refused else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert names(folder) == ["b"]
        folder.chmod(0o755)


_WRITER = textwrap.dedent("""
    import pathlib, sys, time
    from vtexport.bundle.publish import staged
    with staged(pathlib.Path(sys.argv[1])) as folder:
        (folder / "manifest.json").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "data").write_text("new")
        print("staged", flush=True)
        time.sleep(float(sys.argv[2]))
    print("published", flush=True)
""")


def start_writer(destination: Path, pause: float) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(destination), str(pause)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "staged\n"
    return writer


def test_killed_while_writing(tmp_path: Path) -> None:
    with staged(tmp_path / "b") as folder:
        write(folder, "old")
    writer = start_writer(tmp_path / "b", 60)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert content(tmp_path / "b") == ("old", "old")
    assert len(names(tmp_path)) == 2  # a hidden folder is left ...
    with staged(tmp_path / "b") as folder:
        write(folder, "newer")
    assert names(tmp_path) == ["b"]  # ... until the next writer
    assert content(tmp_path / "b") == ("newer", "newer")


def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    writer = start_writer(tmp_path / "b", 1.0)
    with staged(tmp_path / "b") as folder:
        write(folder, "first")
    assert content(tmp_path / "b") == ("first", "first")
    assert writer.wait(30) == 0
    assert content(tmp_path / "b") == ("new", "new")
    assert names(tmp_path) == ["b"]


def _publish_often(destination: str, text: str, until: float) -> None:
    while time.monotonic() < until:
        with staged(Path(destination)) as folder:
            write(folder, text)


def read_at(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 10)
    finally:
        os.close(descriptor)


def test_readers_never_see_half(tmp_path: Path) -> None:
    """Two writers replace one bundle again and again; whoever looks finds the one or the other."""
    destination = tmp_path / "b"
    with staged(destination) as folder:
        write(folder, "0")
    until = time.monotonic() + 2
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_publish_often, args=(str(destination), text, until)) for text in "12"]
    for writer in writers:
        writer.start()
    looks = 0
    while time.monotonic() < until:
        descriptor = os.open(destination, os.O_RDONLY)  # one look at one folder, whatever is exchanged meanwhile
        try:
            found = {read_at(descriptor, name) for name in (MANIFEST_NAME, "sub/data")}
            assert len(found) == 1
            looks += 1
        except FileNotFoundError:
            pass  # the folder opened has been replaced and removed since
        finally:
            os.close(descriptor)
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    assert looks > 10
    assert names(tmp_path) == ["b"]
