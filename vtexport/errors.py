"""The errors a user can meet, each with the exit code the command line gives for it.

A message is one sentence: what is wrong, with the value, and what to do next. Anything else that reaches the command
line is a defect of vtexport and shows as exit code 1 with a request to report it.
"""

from __future__ import annotations


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


def quoted(error: BaseException | str, limit: int = 200) -> str:
    """What a foreign library says, as one printable line of at most `limit` characters for a sentence of our own."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
