"""The digest alongside the work: the same as hashlib's, with buffers used again as soon as the promise allows."""

from __future__ import annotations

import hashlib

import pytest

from vtexport.assemble.hashing import BackgroundDigest


@pytest.mark.parametrize("count", [0, 1, BackgroundDigest.AHEAD, 50])
def test_a_ring_of_buffers_gives_the_same_digest(count: int) -> None:
    expected = hashlib.sha256()
    ring = [bytearray(1_000_000) for _ in range(BackgroundDigest.AHEAD + 1)]
    with BackgroundDigest() as digest:
        for number in range(count):
            buffer = ring[number % len(ring)]
            buffer[:] = bytes([number]) * len(buffer)
            digest.update(memoryview(buffer))
            expected.update(buffer)
        assert digest.hexdigest() == expected.hexdigest()


def test_it_goes_on_after_it_was_asked() -> None:
    with BackgroundDigest() as digest:
        digest.update(b"one")
        assert digest.hexdigest() == hashlib.sha256(b"one").hexdigest()
        digest.update(b"two")
        assert digest.hexdigest() == hashlib.sha256(b"onetwo").hexdigest()
