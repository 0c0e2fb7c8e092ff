"""Settings of a server: where it listens, whom it lets in, and the bounds on everything that comes from outside."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtexport.errors import InputError, UsageError, quoted

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")  # without ":", which stands before the plan
_LEAST = {"port": 0, "loaded": 1, "prompts": 0, "frames": 0, "queue": 0, "max_images": 0, "max_redirects": 0}


@dataclass(frozen=True)
class Settings:
    """Settings of one server; sizes in bytes, times in seconds.

    Attributes:
        host: Address that it listens on.
        port: Of it; 0 for any that is free.
        served_name: Stands for the manifest's name in the names of models.
        plans: Those that are served; all when empty.
        loaded: The most plans whose graphs are in memory at the same time.
        device: As of `Pipeline.open`.
        threads: As of `Pipeline.open`.
        frames: Frames that each loaded plan keeps (`Reuse`).
        prompts: Prompts whose keys and values each loaded plan keeps (`Reuse`).
        api_key: Clients have to show it; None for none.
        allow_files: Folder from which `image_url` may name files; None for none.
        allow_hosts: Names and addresses that `image_url` may name although they are private.
        queue: Requests that may wait while one is answered.
        max_body: Of a request.
        max_image: Of an image's file.
        max_pixels: Of an image.
        max_images: In one request.
        max_tokens: The most new tokens that a request may ask for.
        max_redirects: When an image is fetched.
        body_seconds: For a request to come in.
        fetch_seconds: For an image to be fetched, redirects included.
        answer_seconds: From a request's arrival to the end of its answer.
        grace_seconds: For running answers, once the server was asked to stop.

    Raises:
        UsageError: a value is out of range.
        InputError: `allow_files` is no folder.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str | None = None
    plans: Sequence[str] = ()
    loaded: int = 1
    device: str = "cpu"
    threads: int | None = None
    frames: int = 16
    prompts: int = 1
    api_key: str | None = field(default=None, repr=False)
    allow_files: Path | None = None
    allow_hosts: Sequence[str] = ()
    queue: int = 32
    max_body: int = 32 * 2**20
    max_image: int = 20 * 2**20
    max_pixels: int = 25_000_000
    max_images: int = 16
    max_tokens: int = 4096
    max_redirects: int = 3
    body_seconds: float = 30.0
    fetch_seconds: float = 10.0
    answer_seconds: float = 300.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("max_") or name in _LEAST:
                least = _LEAST.get(name, 1)
                if isinstance(value, bool) or not isinstance(value, int) or value < least:
                    raise UsageError(f"{_option(name)} is {value!r}; give a whole number from {least}")
            elif name.endswith("_seconds") and not 0 < value <= 86400:
                raise UsageError(f"{_option(name)} is {value!r}; give seconds above 0 and at most 86400")
        if self.port > 65535:
            raise UsageError(f"--port is {self.port}; give a number from 0 to 65535")
        if self.served_name is not None and not _NAME.fullmatch(self.served_name):
            raise UsageError(
                f"--served-name is {quoted(repr(self.served_name), limit=80)}; give letters, digits and . _ / -"
            )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UsageError("the API key is empty or has other characters than printable ASCII; give another")
        if self.allow_files is not None and not self.allow_files.is_dir():
            raise InputError(f"{self.allow_files} (--allow-files) is no folder; give the folder of the images")
        for each in self.allow_hosts:
            if not each or "/" in each or (":" in each and not _is_address(each)):
                raise UsageError(
                    f"--allow-hosts has {quoted(repr(each), limit=80)}; give host names or addresses, without a port"
                )

    @property
    def only_here(self) -> bool:
        """True where it listens for this machine alone."""
        return self.host in LOOPBACK or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
