"""What a file's name tells of it."""

from __future__ import annotations

from service.errors import InvalidSpecError
from service.rows.decompress import COMPRESSIONS
from service.rows.sources import EXTENSIONS, NOT_READ
from service.spec.source import FileFormat


def format_and_file_name(name: str, format: FileFormat | None) -> tuple[FileFormat, str]:
    """The format of a file, and the name it is kept under, which tells format and compression.

    Args:
        name: the user's.
        format: what the user says of it, if anything.

    Raises:
        InvalidSpecError: it is an archive, or nothing tells its format.
    """
    extensions = name.rpartition("/")[2].lower().split(".")[1:]
    if extensions and extensions[-1] in NOT_READ:
        raise InvalidSpecError(f"cannot read {extensions[-1]} files; unpack it, or compress with gzip", "name")
    compression = f".{extensions.pop()}" if extensions and extensions[-1] in COMPRESSIONS else ""
    known = format or (EXTENSIONS.get(extensions[-1]) if extensions else None)
    if known is None:
        raise InvalidSpecError(f"cannot tell the format of {name!r} from its name", "format")
    return known, f"content.{known}{compression}"
