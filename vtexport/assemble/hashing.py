"""SHA-256 alongside the work that it is taken of: hashlib lets go of the interpreter, so a thread hashes meanwhile."""

from __future__ import annotations

import collections
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

_AHEAD = 4  # pieces that may wait


class BackgroundDigest:
    """A SHA-256 whose pieces are hashed by one thread, in order; use it in a `with` block.

    A piece must not change until `update` has been called `AHEAD` more times, or the digest was asked for.
    """

    AHEAD = _AHEAD

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "sha256")
        self._waiting: collections.deque[Future[None]] = collections.deque()

    def __enter__(self) -> BackgroundDigest:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def update(self, piece: bytes | memoryview) -> None:
        """Hashes `piece` after those before it; waits while too many are waiting."""
        self._waiting.append(self._thread.submit(self._digest.update, piece))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        """Of all pieces so far."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()
