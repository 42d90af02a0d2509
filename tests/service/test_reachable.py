"""Files that a spec names are looked for as the job will look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from service.api.reachable import require_possible
from service.errors import SourceNotFoundError
from service.spec.job import JobSpec
from service.uri_policy import UriPolicy


def look(document: dict[str, Any], shares_filesystem: bool = True) -> None:
    backend = Mock(shares_filesystem=shares_filesystem, max_cpus=None)
    require_possible(JobSpec.model_validate(document), backend, UriPolicy())


def test_a_name_that_looks_like_a_glob_is_a_name_where_such_a_file_is(
    job_document: dict[str, Any], tmp_path: Path
) -> None:
    directory = tmp_path / "proj[1]-x"
    directory.mkdir()
    [source] = job_document["data"]["sources"]
    source["uri"] = f"file://{directory}/rows.jsonl"
    job_document["model"]["tokenizer"] = {"kind": "pretrained", "path": str(directory)}
    with pytest.raises(SourceNotFoundError) as caught:
        look(job_document)
    assert caught.value.field == "data.sources.0.uri"
    look(job_document, shares_filesystem=False)
    (directory / "rows.jsonl").touch()
    with pytest.raises(SourceNotFoundError) as caught:
        look(job_document)
    assert caught.value.field == "model.tokenizer.path"
    (directory / "tokenizer.json").touch()
    look(job_document)


def test_benchmarks_are_looked_for_and_written_sources_are_not(job_document: dict[str, Any], tmp_path: Path) -> None:
    facts = {"name": "Husky", "maker": "M"}
    job_document["data"]["sources"].append({"kind": "identity", "name": "who", "facts": facts})
    look(job_document)
    benchmark = {"name": "b", "form": "messages", "uri": f"{tmp_path}/bench.jsonl"}
    job_document["data"]["decontaminate"] = {"against": [benchmark]}
    with pytest.raises(SourceNotFoundError) as caught:
        look(job_document)
    assert caught.value.field == "data.decontaminate.against.0.uri"


def test_a_glob_must_match_a_file(job_document: dict[str, Any], tmp_path: Path) -> None:
    [source] = job_document["data"]["sources"]
    source["uri"] = f"file://{tmp_path}/su*.jsonl"
    look(job_document)
    source["uri"] = f"file://{tmp_path}/none*.jsonl"
    with pytest.raises(SourceNotFoundError):
        look(job_document)
