"""Finding raw files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from service.errors import InvalidSpecError, SourceNotFoundError
from service.rows.raw_rows import read_rows
from service.rows.sources import digest, find_files
from service.spec.data import DataSpec
from service.spec.source import SourceSpec

ROWS = [{"prompt": "é, 1", "completion": 'say "x"\nand y'}, {"prompt": "b", "completion": "2"}]


def data_spec(*uris: str, **fields: Any) -> DataSpec:
    sources = [
        {"name": f"s{number}", "category": "c", "form": "prompt_completion", "uri": uri, **fields}
        for number, uri in enumerate(uris)
    ]
    return DataSpec.model_validate({"sources": sources})


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


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
    source = SourceSpec.model_construct(uri="memory://sleddog-test/*.jsonl", format=None, header=None)
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

    monkeypatch.setattr("service.rows.sources.url_to_fs", refuse)
    with pytest.raises(InvalidSpecError, match=rf"install sleddog\[{extra}\]") as caught:
        find_files(data_spec(f"{scheme}://bucket/a.jsonl"))
    assert caught.value.field == "data.sources.0.uri"


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.zip", "a.tar", "a.tgz"])
def test_an_archive_is_refused_whatever_the_format_is_said_to_be(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"")
    with pytest.raises(InvalidSpecError, match="unpack it") as caught:
        find_files(data_spec(path.as_uri(), format="jsonl"))
    assert caught.value.field == "data.sources.0.uri"


def test_a_header_is_for_files_that_may_lack_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"")
    with pytest.raises(InvalidSpecError, match="names its columns itself") as caught:
        find_files(data_spec(path.as_uri(), header=["prompt", "completion"]))
    assert caught.value.field == "data.sources.0.header"
