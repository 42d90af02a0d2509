"""The files of datasets, on a local disk and on an object store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from service.datasets.assemble import assemble, measure
from service.datasets.storage import DatasetFiles, datasets_root, whole_file
from service.errors import InvalidDatasetError


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatasetFiles]:
    yield DatasetFiles(str(tmp_path / "datasets") if request.param == "local" else "memory://datasets")
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(
    ("runs_url", "root"),
    [
        ("/data/runs", "/data/datasets"),
        ("s3://bucket/team/runs/", "s3://bucket/team/datasets"),
        ("s3://bucket/runs", "s3://bucket/datasets"),
        ("s3://bucket", "s3://bucket/datasets"),
        ("file:///data/runs", "file:///data/datasets"),
        ("/runs", "/datasets"),
    ],
)
def test_datasets_lie_beside_the_runs_or_in_their_bucket(runs_url: str, root: str) -> None:
    assert datasets_root(runs_url) == root


def test_parts_become_one_file_only_with_the_right_hash(files: DatasetFiles) -> None:
    parts = [b"one", b"two"]
    hashes = [hashlib.sha256(part).hexdigest() for part in parts]
    for part, sha256 in zip(parts, hashes, strict=True):
        files.write_part("ds-1", sha256, io.BytesIO(part))
    urls, url = [files.part_url("ds-1", sha256) for sha256 in hashes], files.content_url("ds-1", "content.jsonl")
    filesystem, path = fsspec.core.url_to_fs(url)
    with pytest.raises(InvalidDatasetError, match="the parts together have"):
        assemble(urls[::-1], url, hashlib.sha256(b"onetwo").hexdigest())
    assert [found.rpartition("/")[2] for found in filesystem.ls(path.rpartition("/")[0], detail=False)] == ["parts"]
    assemble(urls, url, hashlib.sha256(b"onetwo").hexdigest())
    assert filesystem.cat_file(path) == b"onetwo"
    assert measure(url, "jsonl", 6) == 6
    with pytest.raises(InvalidDatasetError, match="more than 5 bytes"):
        measure(url, "jsonl", 5)
    files.remove_parts("ds-1")
    assert not filesystem.exists(path.replace("content.jsonl", "parts"))
    files.remove("ds-1")
    files.remove("ds-1")
    assert not filesystem.exists(path)


def test_a_file_that_was_not_written_to_its_end_never_appears(files: DatasetFiles) -> None:
    url = files.content_url("ds-1", "content.jsonl")
    filesystem, path = fsspec.core.url_to_fs(url)

    def break_off() -> None:
        with whole_file(url) as file:
            file.write(b"a part")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert not filesystem.exists(path)
    assert filesystem.ls(path.rpartition("/")[0], detail=False) == []
