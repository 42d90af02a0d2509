"""The `Range` header (RFC 9110, section 14): one range of bytes. Several at once are answered by the whole file."""

from __future__ import annotations

import re

_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

NOTHING = (0, 0)
"""A range that lies beyond the file."""


def parse_range(header: str | None, num_bytes: int) -> tuple[int, int] | None:
    """First byte, and the one after the last.

    Args:
        header: as it was sent, if it was.
        num_bytes: of the file.

    Returns:
        None when the whole file is to be sent: nothing else is asked, or nothing that is understood; `NOTHING` when no
        byte of the range exists.
    """
    found = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        length = min(int(last), num_bytes)
        return (num_bytes - length, num_bytes) if length else NOTHING
    if last and int(last) < int(first):
        return None
    end = min(int(last) + 1, num_bytes) if last else num_bytes
    return (int(first), end) if int(first) < num_bytes else NOTHING
