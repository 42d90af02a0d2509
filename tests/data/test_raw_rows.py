"""Reading raw files row by row, and what becomes of broken ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.rows.decompress import MAX_EXPANSION
from service.rows.raw_rows import RawRow, read_rows
from service.rows.sources import SourceFile, find_files
from service.spec.source import FileFormat
from tests.data.test_sources import ROWS, data_spec, jsonl, write


def read(path: Path, format: FileFormat) -> list[RawRow]:
    return list(read_rows(SourceFile(0, path.as_uri(), format)))


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
        ("a.json", "json", b'{"a": 1}\n{"a": 2}\n', [], "not a JSON list; for an object a line say format: jsonl"),
        ("a.json", "json", b" \n", [], "not a JSON list"),
        ("a.json", "json", b"1", [], "not a JSON list"),
        ("a.json", "json", b"[1, 2", [1, 2], "cannot be read from here on: the list is not closed"),
        ("a.json", "json", b'[1, 2, "a', [1, 2], "from here on: JSONDecodeError: Unterminated string"),
        ("a.json", "json", b"[1, 2,]", [1, 2], "from here on: JSONDecodeError: Expecting value"),
        ("a.json", "json", b"[1 2]", [1], "from here on: '2' stands where a comma belongs"),
        ("a.json", "json", b"[1, 2]\n[3]", [1, 2], "from here on: text stands behind the list"),
        ("a.json", "json", b'[1, {"a": }, 3]', [1], "from here on: JSONDecodeError: Expecting value"),
        ("a.json", "json", b'[1, {"a": "\xff"}, 3]', [1, 3], "not UTF-8"),
        ("a.json", "json", b"[1, " + b"[" * 200_000 + b"]" * 200_000 + b", 3]", [1], "from here on: RecursionError"),
        ("a.json.gz", "json", gzip.compress(b"[1, 2, 3]", mtime=0)[:-4], [1, 2, 3], "from here on: EOFError"),
        ("a.csv", "csv", b"p,c\n1,2\n\xff,4\n5,6\n", [1, 3], "not UTF-8"),
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
        (
            "a.json.bz2",
            "json",
            bz2.compress(json.dumps(TEXTS).encode())[:-99],
            [],
            "cannot be read from here on: EOFError",
        ),
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
    monkeypatch.setattr("service.rows.raw_rows.fsspec.open", lambda *_, **__: TornConnection(content))
    with pytest.raises(ConnectionError, match="reset by peer"):
        list(read_rows(SourceFile(0, f"s3://bucket/{name}", format)))


def test_a_file_that_has_gone_is_no_bad_row(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.jsonl.bz2", "jsonl")


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content))


COMPRESSORS = [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]


@pytest.mark.parametrize(("extension", "compress"), COMPRESSORS)
def test_every_compression_is_read_over_several_members_and_a_torn_one_is_noticed(
    tmp_path: Path, extension: str, compress: Callable[[bytes], bytes]
) -> None:
    first, second = jsonl(TEXTS[:5000]), jsonl(TEXTS[5000:])
    path = write(tmp_path / f"a.jsonl.{extension}", compress(first) + compress(second))
    [file] = find_files(data_spec(path.as_uri()))
    assert [row.value for row in read_rows(file)] == TEXTS
    write(path, compress(first + second)[:-40])
    *rows, last = read_rows(file)
    assert "cannot be read from here on" in str(last.reason)
    assert last.number == len(rows) + 1
    assert [row.value for row in rows if row.reason is None] == TEXTS[: sum(row.reason is None for row in rows)]


@pytest.mark.parametrize(("extension", "compress"), COMPRESSORS)
@pytest.mark.parametrize("format", ["jsonl", "json", "csv"])
def test_a_decompression_bomb_is_one_bad_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extension: str,
    compress: Callable[[bytes], bytes],
    format: FileFormat,
) -> None:
    monkeypatch.setattr("service.rows.decompress.EXPANSION_FREE_BYTES", 2**20)
    path = write(tmp_path / f"a.{extension}", compress(b"[" + b" " * (2**21) + b"]\n"))
    [row] = read(path, format)
    assert "cannot be read from here on: ExpansionError" in str(row.reason)


def test_a_bomb_within_parquet_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rows.decompress.EXPANSION_FREE_BYTES", 2**20)
    bomb = pa.table({"prompt": ["x" * 2**20 * 4] * 2})
    path = write(tmp_path / "a.parquet", parquet(bomb, compression="zstd", use_dictionary=False))
    [row] = read(path, "parquet")
    assert "ExpansionError" in str(row.reason)


def test_repetitive_rows_are_no_bomb(tmp_path: Path) -> None:
    rows = jsonl([{"prompt": f"What is {n} plus 1?", "completion": f"It is {n + 1}."} for n in range(40_000)])
    content = gzip.compress(rows)
    assert 5 < len(rows) / len(content) < MAX_EXPANSION / 4
    assert len(read(write(tmp_path / "a.jsonl.gz", content), "jsonl")) == 40_000


def test_parquet_may_be_compressed_once_more(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet.gz", gzip.compress(parquet(pa.Table.from_pylist(ROWS))))
    assert [row.value for row in read(path, "parquet")] == ROWS


def test_a_huge_line_costs_its_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rows.raw_rows.MAX_LINE_BYTES", 20_000)
    path = write(tmp_path / "a.jsonl", b"1\n" + b"2" * 50_000 + b"\n3\n" + b"4" * 30_000)
    rows = read(path, "jsonl")
    assert [(row.number, row.value) for row in rows] == [(1, 1), (2, None), (3, 3), (4, None)]
    assert rows[1].reason == "a line of 20,000 bytes and more"
    assert rows[1].excerpt == "2" * 500
    long_line = write(tmp_path / "a.csv", b"p,c\na,b\n" + b"x" * 50_000 + b",y\nc,d\n")
    assert [row.number for row in read(long_line, "csv") if row.reason is None] == [1]
    assert "a line of 20,000 characters and more" in str(read(long_line, "csv")[-1].reason)
    large_element = write(tmp_path / "a.json", b'[{"a": 1}, {"a": "' + b"x" * 50_000 + b'"}, {"a": 3}]')
    assert [row.number for row in read(large_element, "json") if row.reason is None] == [1]
    assert "in 20,000 characters and more" in str(read(large_element, "json")[-1].reason)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("format", ["jsonl", "json", "csv"])
def test_another_unicode_encoding_is_named(tmp_path: Path, format: FileFormat, encoding: str) -> None:
    [row] = read(write(tmp_path / "a", "prompt,completion\na,b\n".encode(encoding)), format)
    assert row.reason == "the file is in UTF-16 or UTF-32, not in UTF-8"


def test_bytes_of_another_encoding_cost_their_row_only(tmp_path: Path) -> None:
    latin = "prompt,completion\na,b\ncafé,c\nd,e\n".encode("latin-1")
    rows = read(write(tmp_path / "a.csv", latin), "csv")
    assert [row.reason for row in rows] == [None, "not UTF-8", None]
    assert rows[1].excerpt == r"caf\xe9,c"


def test_tab_separated_values_have_no_quoting_and_may_have_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv.gz", gzip.compress(b'"Is it?"\tyes\n"Only one quote\tno\n'))
    [file] = find_files(data_spec(path.as_uri(), header=("prompt", "completion")))
    assert [row.value for row in read_rows(file)] == [
        {"prompt": '"Is it?"', "completion": "yes"},
        {"prompt": '"Only one quote', "completion": "no"},
    ]
    assert [row.number for row in read_rows(file)] == [1, 2]
