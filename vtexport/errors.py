"""The errors a user can meet, each with the exit code the command line gives for it.

A message is one sentence: what is wrong, with the value, and what to do next. Anything else that reaches the command
line is a defect of vtexport and shows as exit code 1 with a request to report it.
"""

from __future__ import annotations

_SHORTEST = 60  # characters of a quotation, however much stands beside it
_CUT = "..."


class VtexportError(Exception):
    """Base of all errors meant for users. `exit_code` is what the command line returns for it."""

    exit_code = 1


class InputError(VtexportError):
    """A file the user gave (checkpoint, image, configuration) cannot be used."""


class UsageError(VtexportError):
    """An argument's value is wrong, also when that is only known after reading a configuration."""

    exit_code = 2


class MissingDependencyError(VtexportError):
    """A package or a device that the request needs is not there."""

    exit_code = 3


class BundleError(VtexportError):
    """A bundle is damaged, incomplete or of a schema this version does not read."""

    exit_code = 4


def quoted(error: object, *beside: object, limit: int = 180) -> str:
    """A library's text, short enough to stand in a sentence of ours: its first line, printable, never empty.

    A first line that ends in a colon takes the second along.

    Args:
        error: an exception, or a library's text.
        beside: what else in the sentence may be long, such as a path: the quotation leaves room for it.
        limit: characters that the quotation and all of `beside` may have together; longer ones are cut
            in the middle with "...".
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if line] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    room = max(_SHORTEST, limit - sum(len(str(each)) for each in beside))
    return cut(printable(first if len(first) <= 2 * room else first[:room] + first[-room:]), room)


def cut(text: str, room: int) -> str:
    """`text`, or its beginning and its end with "..." between them, so that it fits into `room` characters.

    What it is about often comes last: the name of a node, the place in a file.
    """
    if len(text) <= room:
        return text
    end = room // 3
    return text[: room - end - len(_CUT)].rstrip() + _CUT + text[-end:].lstrip()


def printable(text: object) -> str:
    """`text` with what no terminal should get, such as control characters and stray bytes, as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))
