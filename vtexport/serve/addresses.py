"""Addresses that the server may fetch images from: public ones, and hosts that were allowed by name.

A name is resolved once, every address that it has is judged, and the connection goes to a judged address itself: a
second resolution could give another one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection

from vtexport.errors import cut, printable
from vtexport.serve.refusal import wrong

Resolve = Callable[[str, int], Awaitable[list[str]]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


def is_public(address: str) -> bool:
    """True for an address of the public internet; an IPv4 address inside an IPv6 one counts as what it is."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if "%" in address:  # a zone: of a link of this machine
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo is not None or found in _LOCAL_NAT64 or found.is_site_local:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved and not found.is_unspecified


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the system's order.

    Raises:
        OSError: it has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def judged(host: str, port: int, allowed: Collection[str], resolver: Resolve) -> list[str]:
    """The addresses of a host that a connection may go to: all of its own, or none.

    Raises:
        RequestError: the host has no address, or one that is not public and not allowed.
    """
    shown = cut(printable(host), 80)
    try:
        addresses = await resolver(host, port)
    except (OSError, UnicodeError) as error:
        raise wrong(f"the host {shown} of an image_url has no address; check its name") from error
    if not addresses:
        raise wrong(f"the host {shown} of an image_url has no address; check its name")
    names = {each.lower().rstrip(".") for each in allowed}
    if host.lower().rstrip(".") in names or set(addresses) <= names:
        return addresses
    if not all(is_public(each) for each in addresses):
        # The address is not told: it would map the network behind the server
        raise wrong(
            f"the host {shown} of an image_url is not on the public internet, and this server fetches from there "
            "alone; send the image as a data: URL"
        )
    return addresses
