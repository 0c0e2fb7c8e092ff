"""Names of files that other libraries can take."""

from __future__ import annotations

import os

from vtexport.errors import UsageError, printable


def check_name(path: str | os.PathLike[str], step: str) -> None:
    """Refuses a path with bytes that are not UTF-8, which Python writes as lone surrogates.

    Python itself opens such a file. ONNX Runtime, tokenizers and TensorRT take UTF-8 alone, and JSON has nothing else.

    Raises:
        UsageError: with `step`, what to do instead.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the name {printable(path)} holds bytes that are not UTF-8; {step}") from error
