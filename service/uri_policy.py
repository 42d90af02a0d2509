"""What a spec may make the cluster read, and whom it may make it ask.

A user names URIs, and the cluster opens them with its own rights: without a limit that is a way to other people's
files, and, by endpoints, to what listens inside the network (server-side request forgery). What is checked here is what
can be known when a spec is posted; a symbolic link or a name in DNS that is changed afterwards is the cluster's network
policy's and its storage rights' to stop.
"""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from service.errors import InvalidSpecError
from service.webhooks.address import is_public

_FIELDS = ("uri", "path", "base_url", "tracking_uri")
"""Fields of a job's spec that name what is opened or asked."""


@dataclass(frozen=True)
class UriPolicy:
    """What specs may name.

    Attributes:
        allowed: prefixes of URIs, such as `s3://our-data/` or `file:///data/`; empty allows any.
        allow_private: whether HTTP endpoints may be in private networks or on loopback. Link-local addresses, where
            clouds keep their metadata, are refused in any case.
    """

    allowed: tuple[str, ...] = ()
    allow_private: bool = True

    def require_allowed(self, document: Mapping[str, Any]) -> None:
        """Look at all that a job's spec names.

        Raises:
            InvalidSpecError: something is not allowed; with the field's path.
        """
        for field, value in _named(document, ""):
            if value.startswith(("http://", "https://")):
                self._require_endpoint(value, field)
            elif not value.startswith("dataset://"):  # an upload, which its own project alone can name
                self._require_uri(value, field)

    def _require_uri(self, uri: str, field: str) -> None:
        scheme, _, path = uri.partition("://") if "://" in uri else ("file", "", uri)
        if "::" in uri:
            raise InvalidSpecError("holds `::`, which leads from one filesystem into another", field)
        if ".." in unquote(path).split("/"):
            raise InvalidSpecError("holds `..`; write the path that is meant", field)
        if not self.allowed:
            return
        names = [f"{scheme}://{path}"]
        if scheme == "file":  # a glob may find links that lead elsewhere
            names = [_file_uri(path), *map(_file_uri, glob.iglob(path, recursive=True))]
        if not all(any(_is_below(name, prefix) for prefix in self.allowed) for name in names):
            raise InvalidSpecError(f"is not below what this service may read: {', '.join(self.allowed)}", field)

    def _require_endpoint(self, url: str, field: str) -> None:
        host = urlsplit(url).hostname or ""
        try:
            found = {str(item[4][0]) for item in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            if self.allow_private:
                return  # the cluster may know a name that the service does not
            raise InvalidSpecError(f"cannot be found: {error}", field) from None
        for address in sorted(found):
            if ip_address(address.partition("%")[0]).is_link_local:
                raise InvalidSpecError(f"leads to a link-local address, {address}", field)
            if not self.allow_private and not is_public(address):
                raise InvalidSpecError(
                    f"leads into a private network ({address}), which this service does not allow", field
                )


def _named(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Fields that name something, by their last part, and what they name."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _named(item, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _named(item, f"{field}.{number}")
    elif isinstance(value, str) and field.rpartition(".")[2] in _FIELDS:
        yield field, value


def _file_uri(path: str) -> str:
    """A local path with its symbolic links followed."""
    return f"file://{os.path.realpath(path)}"


def _is_below(uri: str, prefix: str) -> bool:
    scheme, _, path = prefix.partition("://")
    if scheme == "file":
        prefix = _file_uri(path)
    return uri == prefix or uri.startswith(prefix.rstrip("/") + "/")
