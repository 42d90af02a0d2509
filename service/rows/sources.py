"""Finding raw files on any filesystem of fsspec, and telling them apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import fsspec
from fsspec.core import url_to_fs

from service.errors import InvalidSpecError, SourceNotFoundError
from service.rows.decompress import COMPRESSIONS
from service.spec.data import DataSpec
from service.spec.source import FileFormat, FileSet

EXTENSIONS: dict[str, FileFormat] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
}
NOT_READ = ("zip", "tar", "tgz", "7z", "rar", "lz4", "br", "lzma")
_PACKAGE_EXTRAS = {"s3": "s3", "gs": "gcs"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        source: the source's place in the spec.
        url: with its scheme.
        format: of the content below any compression.
        header: column names, where the file has no line of them.
    """

    source: int
    url: str
    format: FileFormat
    header: tuple[str, ...] | None = None


def find_files(data: DataSpec, written: Mapping[int, SourceFile] | None = None) -> list[SourceFile]:
    """All files of all sources, in order of source and name.

    Args:
        data: the spec.
        written: files of the sources that are written and not found, by the source's place.

    Raises:
        SourceNotFoundError: a URI matches nothing.
        InvalidSpecError: a file's format is unknown or unlike what the spec says of it, or its filesystem needs a
            package that is not installed.
    """
    return [
        file
        for index, source in enumerate(data.sources)
        for file in (
            files_of(source, index, f"data.sources.{index}")
            if isinstance(source, FileSet)
            else [(written or {})[index]]
        )
    ]


def files_of(files: FileSet, index: int, field: str) -> list[SourceFile]:
    """The files of one set, in order of name.

    Args:
        files: where they lie.
        index: the set's place in the spec.
        field: the set's path in the spec, for errors.

    Raises:
        SleddogError: as `find_files`.
    """
    if files.uri.startswith("dataset://"):
        raise InvalidSpecError(
            f"{files.uri} is known to the service that it was uploaded to, and not here", f"{field}.uri"
        )
    try:
        filesystem, path = url_to_fs(files.uri)
    except ImportError as error:
        extra = _PACKAGE_EXTRAS.get(files.uri.partition(":")[0])
        hint = f"install sleddog[{extra}]" if extra else str(error)
        raise InvalidSpecError(f"this filesystem needs a package that is missing: {hint}", f"{field}.uri") from error
    matches = [path] if filesystem.isfile(path) else sorted(filesystem.glob(path))
    paths = [match for match in matches if filesystem.isfile(match)]
    if not paths:
        raise SourceNotFoundError(f"no such file: {files.uri}", f"{field}.uri")
    return [
        SourceFile(index, filesystem.unstrip_protocol(match), _format_of(match, files, field), files.header)
        for match in paths
    ]


def _format_of(path: str, files: FileSet, field: str) -> FileFormat:
    extensions = path.rpartition("/")[2].lower().split(".")[1:]
    if extensions and extensions[-1] in NOT_READ:
        raise InvalidSpecError(f"cannot read {path}; unpack it, or compress each file by itself", f"{field}.uri")
    if extensions and extensions[-1] in COMPRESSIONS:
        extensions.pop()
    known = files.format or (EXTENSIONS.get(extensions[-1]) if extensions else None)
    if known is None:
        raise InvalidSpecError(f"cannot tell the format of {path} from its name", f"{field}.format")
    if files.header is not None and known not in ("csv", "tsv"):
        raise InvalidSpecError(f"{path} is {known} and names its columns itself", f"{field}.header")
    return known


def digest(url: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with fsspec.open(url, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
