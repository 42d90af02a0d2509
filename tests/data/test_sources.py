"""Finding and reading raw files, and what becomes of broken ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.data.sources import RawRow, SourceFile, digest, find_files, read_rows
from service.errors import InvalidSpecError, SourceNotFoundError
from service.spec.data import DataSpec, FileFormat, SourceSpec

ROWS = [{"prompt": "é, 1", "completion": 'say "x"\nand y'}, {"prompt": "b", "completion": "2"}]


def data_spec(*uris: str, **fields: Any) -> DataSpec:
    sources = [
        {"name": f"s{number}", "category": "c", "form": "prompt_completion", "uri": uri, **fields}
        for number, uri in enumerate(uris)
    ]
    return DataSpec.model_validate({"sources": sources})


def read(path: Path, format: FileFormat) -> list[RawRow]:
    return list(read_rows(SourceFile(0, path.as_uri(), format)))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def torn(content: bytes) -> bytes:
    """The content with some bytes in its middle overwritten."""
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 64 + content[middle + 64 :]


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


TEXTS = [f"text {number} of {number * 7919}" for number in range(20_000)]
CSV = '\ufeffprompt,completion\n"é, 1","say ""x""\nand y"\nb,2\n'.encode()


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    files = [
        ("parquet", tmp_path / "a.parquet"),
        ("jsonl", write(tmp_path / "a.jsonl", jsonl(ROWS))),
        ("json", write(tmp_path / "a.json", json.dumps(ROWS).encode())),
        ("csv", write(tmp_path / "a.csv", CSV)),
        ("jsonl", write(tmp_path / "a.jsonl.gz", gzip.compress(jsonl(ROWS)))),
        ("csv", write(tmp_path / "a.csv.bz2", bz2.compress(CSV))),
    ]
    for expected, path in files:
        [file] = find_files(data_spec(path.as_uri()))
        assert file.format == expected
        assert list(read_rows(file)) == [RawRow(1, ROWS[0]), RawRow(2, ROWS[1])], path


def test_empty_lines_count_as_lines_and_not_as_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\n{"a": 1}\n  \n{"a": 2}')
    assert [row.number for row in read(path, "jsonl")] == [2, 4]


def test_empty_files_hold_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", b""), "jsonl") == []
    assert read(write(tmp_path / "a.csv", b""), "csv") == []
    assert read(write(tmp_path / "a.json", b"[]"), "json") == []


def test_a_field_longer_than_the_csv_module_allows_by_default_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"prompt,completion\na," + b"x" * 200_000 + b"\n")
    assert len(read(path, "csv")[0].value["completion"]) == 200_000


@pytest.mark.parametrize(
    ("name", "format", "content", "good", "reason"),
    [
        ("a.jsonl", "jsonl", b'{"a": 1}\n{"a": \n{"a": 3}\n', [1, 3], "not JSON: JSONDecodeError"),
        ("a.jsonl", "jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n', [1, 3], "not JSON: UnicodeDecodeError"),
        ("a.jsonl", "jsonl", b"1\n" + b"[" * 200_000 + b"\n3\n", [1, 3], "not JSON: RecursionError"),
        ("a.json", "json", b'{"a": 1}', [], "not a list of rows but dict"),
        ("a.json", "json", b"[1, 2", [], "not JSON"),
        ("a.csv", "csv", b"p,c\n1,2\n\xff,4\n", [], "cannot be read from here on: UnicodeDecodeError"),
        ("a.csv", "csv", b'p,c\n1,2\n3,"4\n', [1], "cannot be read from here on: Error"),
        ("a.csv", "csv", b"p,c\n1,2\n3,4,5\n6,7\n", [1, 3], "more fields than the header"),
        ("a.parquet", "parquet", b"PAR1 is not enough", [], "cannot be read from here on: ArrowInvalid"),
        ("a.jsonl.gz", "jsonl", b"plain text", [], "cannot be read from here on: BadGzipFile"),
        (
            "a.jsonl.gz",
            "jsonl",
            gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9],
            None,
            "cannot be read from here on: EOFError",
        ),
        ("a.jsonl.bz2", "jsonl", b"plain text", [], "cannot be read from here on: OSError"),
        ("a.json.bz2", "json", torn(bz2.compress(jsonl(TEXTS))), [], "cannot be read from here on: OSError"),
        ("a.csv.xz", "csv", b"plain text", [], "cannot be read from here on: LZMAError"),
        ("a.parquet", "parquet", torn(parquet(pa.table({"a": TEXTS}))), None, "cannot be read from here on: OSError"),
    ],
)
def test_broken_content_is_a_row_with_a_reason(
    tmp_path: Path, name: str, format: FileFormat, content: bytes, good: list[int] | None, reason: str
) -> None:
    rows = read(write(tmp_path / name, content), format)
    bad = [row for row in rows if row.reason]
    assert len(bad) == 1
    assert reason in str(bad[0].reason)
    if good is not None:
        assert [row.number for row in rows if not row.reason] == good


def test_a_value_that_python_has_none_for_costs_its_row_only(tmp_path: Path) -> None:
    years = pa.array([2_000, 20_000, 2_001], pa.int64())
    days = pa.compute.multiply(pa.compute.subtract(years, 1970), 365).cast(pa.int32()).cast(pa.date32())
    path = write(tmp_path / "a.parquet", parquet(pa.table({"prompt": ["a", "b", "c"], "written": days})))
    assert [row.number for row in read(path, "parquet") if row.reason is None] == [1, 3]
    [bad] = [row for row in read(path, "parquet") if row.reason]
    assert bad.number == 2
    assert "a value cannot be decoded: " in str(bad.reason)


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    table = pa.table({"unused": pa.array([2**62], pa.timestamp("us")), "prompt": ["a"]})
    file = SourceFile(0, write(tmp_path / "a.parquet", parquet(table)).as_uri(), "parquet")
    assert list(read_rows(file, ("prompt", "completion"))) == [RawRow(1, {"prompt": "a"})]
    assert list(read_rows(file, ("completion",))) == [RawRow(1, {})], "a row without any of them is still a row"


class TornConnection(io.BytesIO):
    """A remote file whose connection fails in its middle."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= len(self.getvalue()) // 2:
            raise ConnectionError("reset by peer")
        return super().read(min(size or 0, len(self.getvalue()) // 2))


@pytest.mark.parametrize(
    ("name", "format", "content"),
    [
        ("a.jsonl", "jsonl", jsonl(TEXTS)),
        ("a.json.bz2", "json", bz2.compress(json.dumps(TEXTS).encode())),
        ("a.csv.gz", "csv", gzip.compress("\n".join(TEXTS).encode())),
        ("a.parquet", "parquet", parquet(pa.table({"a": TEXTS}))),
    ],
)
def test_an_error_of_the_filesystem_is_no_bad_row(
    monkeypatch: pytest.MonkeyPatch, name: str, format: FileFormat, content: bytes
) -> None:
    monkeypatch.setattr("ray_jobs.data.sources.fsspec.open", lambda *_, **__: TornConnection(content))
    with pytest.raises(ConnectionError, match="reset by peer"):
        list(read_rows(SourceFile(0, f"s3://bucket/{name}", format)))


def test_a_file_that_has_gone_is_no_bad_row(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.jsonl.bz2", "jsonl")


def test_a_glob_finds_files_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "c.txt"):
        write(tmp_path / name, b"")
    (tmp_path / "d.jsonl").mkdir()
    first, second = find_files(data_spec(f"{tmp_path.as_uri()}/[ab].*"))
    assert [first.url, second.url] == [f"{tmp_path.as_uri()}/a.csv", f"{tmp_path.as_uri()}/b.jsonl"]


def test_a_name_that_looks_like_a_glob_is_a_name_where_such_a_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "rows[1].jsonl", b"")
    assert [file.url for file in find_files(data_spec(f"file://{path}"))] == [f"file://{path}"]


def test_sources_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, b"")
    files = find_files(data_spec(*((tmp_path / name).as_uri() for name in ("b.jsonl", "a.jsonl"))))
    assert [(file.source, file.url[-7:]) for file in files] == [(0, "b.jsonl"), (1, "a.jsonl")]


def test_another_filesystem_serves_as_well() -> None:
    """The memory of this process stands for a remote store; a spec takes no such URI, so it is not validated."""
    with fsspec.open("memory://sleddog-test/a.jsonl", "wb") as file:
        file.write(jsonl(ROWS))
    source = SourceSpec.model_construct(uri="memory://sleddog-test/*.jsonl", format=None)
    [found] = find_files(DataSpec.model_construct(sources=(source,)))
    assert [row.value for row in read_rows(found)] == ROWS
    assert len(digest(found.url)) == 64


@pytest.mark.parametrize("name", ["none.jsonl", "*.jsonl", ""])
def test_a_missing_file_names_the_field(tmp_path: Path, name: str) -> None:
    present = write(tmp_path / "a.csv", b"")
    with pytest.raises(SourceNotFoundError) as caught:
        find_files(data_spec(present.as_uri(), f"{tmp_path.as_uri()}/{name}"))
    assert caught.value.field == "data.sources.1.uri"


def test_an_unknown_extension_asks_for_the_format(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", jsonl(ROWS))
    with pytest.raises(InvalidSpecError) as caught:
        find_files(data_spec(path.as_uri()))
    assert caught.value.field == "data.sources.0.format"
    assert find_files(data_spec(path.as_uri(), format="jsonl"))[0].format == "jsonl"


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_package_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str) -> None:
    def refuse(uri: str) -> None:
        raise ImportError(uri)

    monkeypatch.setattr("ray_jobs.data.sources.url_to_fs", refuse)
    with pytest.raises(InvalidSpecError, match=rf"install sleddog\[{extra}\]") as caught:
        find_files(data_spec(f"{scheme}://bucket/a.jsonl"))
    assert caught.value.field == "data.sources.0.uri"
