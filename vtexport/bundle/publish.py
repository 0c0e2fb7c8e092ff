"""Putting a bundle in place whole or not at all.

A bundle is written into a hidden folder beside its destination (`.NAME.building-*`), which its writer holds locked, and
then exchanged with what stands at the destination in one step of the file system (`renameat2` with `RENAME_EXCHANGE`,
Linux). Where a file system cannot exchange, the old bundle is moved aside first (`.NAME.previous-*`) and `recover` puts
it back if the writer died in between. A crash leaves at most a hidden folder that nobody holds locked, and the next
writer removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from vtexport.bundle import unfinished
from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.bundle.paths import check_name
from vtexport.errors import InputError, UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged(
    destination: Path, before_exchange: Callable[[], None] | None = None, marker: str = MANIFEST_NAME
) -> Iterator[Path]:
    """A new folder to fill; when the block ends without an exception it takes the place of `destination`.

    `before_exchange` is called when no other writer can exchange any more; what it raises ends the writing. `marker` is
    the file by which a folder is known that may be replaced.

    Raises:
        UsageError: `destination` is something other than a bundle or an empty folder.
        InputError: the folder's parent cannot be written, or its disk is full.
    """
    destination = _absolute(destination)
    check_destination(destination, marker)
    staging = destination.with_name(f".{destination.name}.building-{secrets.token_hex(4)}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        recover(destination)
        # One writer at a time cleans up and starts: a folder made but not yet locked would look abandoned to another.
        with _locked(destination.parent):
            _remove_abandoned(destination)
            # Before it is there: a signal may come at any moment.
            unfinished.begin(staging, lambda: _discard(staging, destination))
            staging.mkdir(mode=0o700)
            lock = _lock_folder(staging)
    except OSError as error:
        _discard(staging, destination)
        raise InputError(
            f"{destination.parent} cannot be written ({error.strerror}); choose another -o/--output"
        ) from error
    try:
        yield staging
        _finish(staging)
        with _locked(destination.parent):
            check_destination(destination, marker)
            if before_exchange is not None:
                before_exchange()
            _exchange(staging, destination)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise InputError(
            f"the disk of {destination.parent} is full; free some space or choose another -o/--output"
        ) from error
    finally:
        _discard(staging, destination)
        os.close(lock)


def _discard(staging: Path, destination: Path) -> None:
    """Removes `staging`: after an exchange this is the old bundle, after a failure the half-written one.

    An old bundle that stands aside goes too, or back to its place where nothing has taken it.
    """
    aside = _aside(staging)
    if not destination.exists():
        with contextlib.suppress(OSError):  # it is not there, as nearly always
            aside.rename(destination)
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(staging, ignore_errors=True)
    unfinished.end(staging)


def check_destination(destination: Path, marker: str = MANIFEST_NAME) -> None:
    """Refuses to replace anything that is not a bundle, or another folder that holds the file `marker`.

    Raises:
        UsageError: a file stands there, or a folder that holds something else, it lies in the hub's cache, or its
            name is no UTF-8.
    """
    check_name(destination, "choose another -o/--output")
    refuse_to_write(destination)
    parent = next(parent for parent in destination.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UsageError(f"{parent} is a file, so {destination} cannot be made in it; choose another -o/--output")
    if destination.is_symlink():
        raise UsageError(f"{destination} is a link; give the folder that it leads to as -o/--output")
    if Path.cwd().is_relative_to(_absolute(destination)):
        raise UsageError(
            f"{destination} is the folder this runs in, which cannot be replaced; choose another -o/--output"
        )
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"{destination} exists and is not a folder; choose another -o/--output")
    weights = next(destination.glob("*.safetensors"), None) if marker == MANIFEST_NAME else None
    if weights is not None:  # also where a bundle stands beside them, which is then no folder to be exchanged
        raise UsageError(
            f"{destination} holds a checkpoint's weights ({weights.name}), which a build does not replace; choose "
            "another -o/--output, or --link-weights to put graphs beside them"
        )
    if destination.is_dir() and any(destination.iterdir()) and not (destination / marker).is_file():
        raise UsageError(f"{destination} exists and holds something that is not a bundle; choose another -o/--output")


def recover(destination: Path) -> None:
    """Puts back a bundle that a writer moved aside before it died; does nothing otherwise."""
    destination = _absolute(destination)
    if destination.exists() or not destination.parent.is_dir():
        return
    aside = sorted(destination.parent.glob(f".{_escaped(destination.name)}.previous-*"))
    if aside:
        with _locked(destination.parent):
            if not destination.exists() and aside[0].exists():
                aside[0].rename(destination)


def _finish(staging: Path) -> None:
    """World-readable modes whatever the umask, and everything on the disk before the exchange."""
    for folder, _, files in os.walk(staging):
        for name in files:
            path = Path(folder, name)
            path.chmod(0o644)
            sync(path)
        Path(folder).chmod(0o755)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Waits until what was written to a file, or renamed in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(staging: Path, destination: Path) -> None:
    if not destination.exists():
        staging.rename(destination)
    elif _rename_exchange(staging, destination):
        pass
    else:
        aside = _aside(staging)
        destination.rename(aside)
        staging.rename(destination)
    sync(destination.parent)


def _aside(staging: Path) -> Path:
    """The path at which the old bundle waits while `staging` takes its place."""
    before, _, token = staging.name.rpartition(".building-")
    return staging.with_name(f"{before}.previous-{token}")


def _rename_exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _remove_abandoned(destination: Path) -> None:
    """Removes what dead writers of this destination left; a live writer's folder is locked and stays."""
    name = _escaped(destination.name)
    for path in [
        *destination.parent.glob(f".{name}.building-*"),
        *(destination.parent.glob(f".{name}.previous-*") if destination.exists() else ()),
    ]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _lock_folder(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's own lock, so that no lock file is left behind; for the moment of an exchange only."""
    descriptor = _lock_folder(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _absolute(path: Path) -> Path:
    """`path` without `..`, links left as they are (`Path.resolve` would follow them)."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _escaped(name: str) -> str:
    """`name` for a glob pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
