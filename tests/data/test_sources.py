"""Finding and reading raw files, and what becomes of broken ones."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.data.sources import RawRow, SourceFile, digest, find_files, read_rows
from service.errors import InvalidSpecError, SourceNotFoundError
from service.spec.data import DataSpec, FileFormat

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
        ("a.jsonl.gz", "jsonl", gzip.compress(b'{"a": 1}\n' * 9)[:-9], None, "cannot be read from here on: EOFError"),
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
    with fsspec.open("memory://sleddog-test/a.jsonl", "wb") as file:
        file.write(jsonl(ROWS))
    [found] = find_files(data_spec("memory://sleddog-test/*.jsonl"))
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
