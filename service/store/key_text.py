"""The text of an API key, `sd-<id>-<secret>`, and what is kept of it.

The secret is 256 random bits: nothing to guess, so a fast keyed hash is enough. The key of the hash lies outside the
database, so that whoever can write to the database alone cannot make a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

HMAC_SCHEME = "hmac-sha256"
PLAIN_SCHEME = "sha256"
"""Of keys from before projects, which have no id in their text."""

_FORM = re.compile(r"sd-(?P<id>[0-9a-f]{12})-[A-Za-z0-9_-]{43}")


class KeyDigest(NamedTuple):
    """What is kept of a key's text."""

    key_id: str | None
    scheme: str
    digest: str


def new_api_key() -> str:
    """256 random bits behind a public id, with a prefix that secret scanners can look for."""
    return f"sd-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def digest_of(text: str, secret: bytes) -> KeyDigest:
    """What is kept of a key.

    Args:
        text: the whole key.
        secret: the server's.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        return KeyDigest(None, PLAIN_SCHEME, hashlib.sha256(text.encode()).hexdigest())
    return KeyDigest(form["id"], HMAC_SCHEME, hmac.new(secret, text.encode(), hashlib.sha256).hexdigest())


def is_same(one: str, other: str) -> bool:
    """Whether two digests are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)
