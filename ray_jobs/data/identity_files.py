"""Identity sources as files of rows, so that all that follows treats them like any other.

    identity-<hash>/rows.jsonl      {"messages": […], "origin": "template" | "endpoint"} a line

The hash is of what decides the rows. A file that is there is never written anew: an endpoint would answer otherwise the
next time, and the data of a job that is started again must not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from fsspec.core import url_to_fs

from ray_jobs.data.identity import write_identity
from ray_jobs.data.paraphrase import Paraphrase, Paraphraser
from ray_jobs.run_directory import write_file
from service.rows.formats import Conversation
from service.rows.sources import SourceFile
from service.spec.identity import IdentitySourceSpec

FORMAT_VERSION = 1
"""Raised when this code or its templates would write other rows."""
_WHAT_DECIDES = {"facts", "num_examples", "use_packaged_templates", "templates", "frames"}
_WHAT_DECIDES_PARAPHRASE = {"base_url", "model", "fraction", "temperature"}


def identity_file(
    spec: IdentitySourceSpec, index: int, prepared_url: str, progress: Callable[[int, int], None]
) -> SourceFile:
    """Write the rows of an identity source, or find them.

    Args:
        spec: the source.
        index: its place in the job's spec.
        prepared_url: where prepared data lies.
        progress: told how many rows are done, and of how many.

    Raises:
        InvalidSpecError: the templates do not give enough rows, or the endpoint refuses.
        EndpointError: the endpoint does not answer.
    """
    file = SourceFile(index, f"{prepared_url}/identity-{_identity(spec)}/rows.jsonl", "jsonl")
    filesystem, path = url_to_fs(file.url)
    if not filesystem.exists(path):
        field = f"data.sources.{index}"
        rows = _paraphrase(spec, field, write_identity(spec, field), progress)
        content = b"".join(_line(row) for row in rows)
        filesystem.invalidate_cache()
        if not filesystem.exists(path):  # by another job, in the minutes that an endpoint takes
            write_file(file.url, content)
    progress(spec.num_examples, spec.num_examples)
    return file


def _identity(spec: IdentitySourceSpec) -> str:
    document = {
        "version": FORMAT_VERSION,
        **spec.model_dump(include=_WHAT_DECIDES),
        "paraphrase": spec.paraphrase.model_dump(include=_WHAT_DECIDES_PARAPHRASE) if spec.paraphrase else None,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _paraphrase(
    spec: IdentitySourceSpec, field: str, rows: list[Conversation], progress: Callable[[int, int], None]
) -> list[Paraphrase]:
    """Rows with the spec's fraction reworded, evenly spread; one whose first question is there already stays."""
    kept = [Paraphrase(row, is_reworded=False) for row in rows]
    if spec.paraphrase is None:
        return kept
    count = -int(-len(rows) * spec.paraphrase.fraction // 1)
    places = [number * len(rows) // count for number in range(count)]
    with Paraphraser(spec.paraphrase, spec.facts, f"{field}.paraphrase") as paraphraser:
        reworded = paraphraser.reword([rows[place] for place in places], lambda done: progress(done, len(rows)))
    questions = {row[0].content for row in rows}
    for place, paraphrase in zip(places, reworded, strict=True):
        question = paraphrase.conversation[0].content
        if paraphrase.is_reworded and question not in questions:
            questions.add(question)
            kept[place] = paraphrase
    return kept


def _line(row: Paraphrase) -> bytes:
    messages = [turn._asdict() for turn in row.conversation]
    line = {"messages": messages, "origin": "endpoint" if row.is_reworded else "template"}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
