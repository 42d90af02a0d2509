"""Where messages may be sent: to the internet, not into the service's own network.

A user names the URL, and the service calls it from inside: without a check that is a way to the cluster, to the cloud's
metadata, to whatever listens on loopback (server-side request forgery). A host is resolved once, all of its addresses
must be public, and the connection goes to the very address that was checked, so that a name that resolves otherwise a
moment later changes nothing.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx

from service.errors import InvalidSpecError

_NAT64 = IPv6Network("64:ff9b::/96")
"""IPv4 addresses behind a translator (RFC 6052)."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's; IPv6 forms of IPv4 addresses count as these."""
    found = _unwrapped(ip_address(address.partition("%")[0]))
    return found.is_global and not found.is_multicast


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def resolve(url: str, *, allow_private: bool) -> str:
    """The address to send to.

    Args:
        url: of the receiver.
        allow_private: whether it may be in the service's own network, and without TLS.

    Raises:
        InvalidSpecError: it is no URL, has no address, or may not be sent to; the field is `url`.
    """
    try:
        parsed = httpx.URL(url)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        found = socket.getaddrinfo(parsed.host, port, type=socket.SOCK_STREAM)
    except (httpx.InvalidURL, OSError, UnicodeError) as error:
        raise InvalidSpecError(f"cannot be found: {error}", "url") from None
    addresses = [str(item[4][0]) for item in found]
    if not allow_private:
        if parsed.scheme != "https":
            raise InvalidSpecError("must begin with https://: messages tell of your jobs", "url")
        if hidden := [address for address in addresses if not is_public(address)]:
            raise InvalidSpecError(
                f"leads into a private network ({hidden[0]}), which this service does not allow", "url"
            )
    return addresses[0]


def request_to(address: str, url: str, body: bytes, headers: dict[str, str]) -> httpx.Request:
    """A POST to a URL that goes to an address that was checked; TLS still proves the host's name."""
    parsed = httpx.URL(url)
    headers = {**headers, "Host": parsed.netloc.decode(), "Content-Type": "application/json"}
    request = httpx.Request("POST", parsed.copy_with(host=address, userinfo=b""), content=body, headers=headers)
    request.extensions["sni_hostname"] = parsed.host
    return request
