"""Addresses that images may be fetched from."""

from __future__ import annotations

import asyncio

import pytest

from vtexport.serve.addresses import is_public, judged, resolve
from vtexport.serve.refusal import RequestError


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:0a00:0001::",
        "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "none",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    assert not is_public(address)


def ask(host: str, addresses: list[str], *allowed: str) -> list[str]:
    async def resolver(name: str, port: int) -> list[str]:
        assert (name, port) == (host, 80)
        return addresses

    return asyncio.run(judged(host, 80, allowed, resolver))


def test_all_addresses_of_a_host_count() -> None:
    assert ask("a.example", ["8.8.8.8", "8.8.4.4"]) == ["8.8.8.8", "8.8.4.4"]
    with pytest.raises(
        RequestError, match=r"the host a.example of an image_url is not on the public internet"
    ) as found:
        ask("a.example", ["8.8.8.8", "10.0.0.1"])
    assert "10.0.0.1" not in str(found.value)
    with pytest.raises(RequestError, match="has no address"):
        ask("a.example", [])


@pytest.mark.parametrize("allowed", ["cam.local", "CAM.local.", "192.168.1.7"])
def test_allowed_hosts(allowed: str) -> None:
    assert ask("cam.local", ["192.168.1.7"], allowed) == ["192.168.1.7"]
    with pytest.raises(RequestError):
        ask("cam.local.example", ["192.168.1.8"], allowed)
    with pytest.raises(RequestError):
        ask("other.local", ["192.168.1.7", "192.168.1.8"], allowed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1"])
def test_other_spellings_of_this_machine(host: str) -> None:
    """They are judged as the system resolves them."""
    with pytest.raises(RequestError):
        asyncio.run(judged(host, 80, (), resolve))
