"""One sentence and an exit code for whatever ends a command."""

from __future__ import annotations

import errno
import os

from vtexport.errors import MissingDependencyError, VtexportError, printable, quoted

INTERRUPTED = 130

_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_NEXT_STEP = {
    errno.ENOENT: "check the name, and that nothing removes it meanwhile",
    errno.ENOTDIR: "a part of the path before its end is a file; check the path",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "something of that name stands there; choose another name",
    errno.ENOTEMPTY: "something else was put into the folder meanwhile; run the command again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; give the file itself",
    errno.EMFILE: "this process has too many files open; raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open; end other programs",
    errno.EIO: "the disk or the connection to it fails; check it, and copy the files elsewhere",
    errno.ENODEV: "it cannot be mapped into memory there; copy it to an ordinary disk",
    errno.ENXIO: "there is no such device; check the path",
    errno.ESTALE: "the network disk has lost it; mount the disk again",
    errno.ETXTBSY: "a program is running from it; end that first",
    errno.EFBIG: "the file would be too large for the file system; choose another folder",
    errno.EXDEV: "it lies on another disk; choose a folder on the same one",
    errno.ENOTSUP: "the file system cannot do this; choose a folder on another disk",
    errno.EBUSY: "something else uses it; end that and run the command again",
    errno.ENOMEM: "the memory does not suffice; end other programs",
    errno.EAGAIN: "something else uses it; run the command again later",
    errno.EINVAL: "the system does not take this name or this file; check the path",
}


def explain(error: BaseException) -> tuple[str, int]:
    """One sentence and the exit code for an error."""
    if isinstance(error, VtexportError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("vtexport"):
        missing = MissingDependencyError(
            f"the Python package {error.name} is not installed; run pip install 'vtexport[export]' to build bundles"
        )
        return str(missing), missing.exit_code
    if isinstance(error, MemoryError):
        return f"the memory does not suffice ({quoted(error)}); end other programs or use a machine with more", 1
    if isinstance(error, RecursionError):
        return f"something that was given is nested too deeply ({quoted(error)}); --debug shows where it is read", 1
    if isinstance(error, UnicodeError):
        return f"a name, an argument or a file is no valid text ({quoted(error)}); --debug shows where it is used", 1
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error), 1
    kind = type(error).__name__
    return f"unexpected {kind}: {quoted(error)}; run again with --debug and report this with its output", 1


def _explain_os_error(error: OSError) -> str:
    number = error.errno or 0
    reason = quoted(error.strerror or os.strerror(number), limit=100)
    names = [
        printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    ]
    what = " and ".join(names)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full ({what or reason}); free some space or choose another folder"
    if number in _NO_PERMISSION:
        return f"no permission for {what or 'a file'} ({reason}); choose another folder"
    step = _NEXT_STEP.get(number, "run again with --debug to see where it is used")
    return f"{what or 'a file'} cannot be used ({reason}); {step}"
