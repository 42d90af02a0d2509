"""The sections of the report page by which another can check the data: the certificate of packing, and the lineage."""

from __future__ import annotations

import json
from typing import Any

from ray_jobs.html.parts import details, paragraph, preformatted, spaced, table

_DOCUMENT_COLUMNS = ("begin", "end", "part", "position", "head", "start", "is_whole", "sha256")


def certificate(manifest: dict[str, Any]) -> str:
    """Which rows were compared with the tokenised parts, document by document.

    Args:
        manifest: of packed data.
    """
    samples = [(spaced(split), row) for split, rows in manifest["certificate"]["samples"].items() for row in rows]
    explained = paragraph(
        "These rows, drawn by the seed, were read back from their shards, and each of their documents from the "
        "tokenised part that it comes from. Both had the same tokens and the same mask."
    )
    columns = ("split", "row", "documents", "whole", "pieces", "tokens", "corpus parts")
    lines = [(split, row["row"], *_summary(row["documents"])) for split, row in samples]
    documents = [
        (split, row["row"], *(document[name] for name in _DOCUMENT_COLUMNS))
        for split, row in samples
        for document in row["documents"]
    ]
    listed = table(("split", "row", *map(spaced, _DOCUMENT_COLUMNS)), documents)
    return explained + table(columns, lines) + details(f"All {len(documents):,} documents with their hashes", listed)


def _summary(documents: list[dict[str, Any]]) -> tuple[object, ...]:
    num_whole = sum(document["is_whole"] for document in documents)
    parts = ", ".join(str(part) for part in sorted({document["part"] for document in documents}))
    return len(documents), num_whole, len(documents) - num_whole, documents[-1]["end"], parts


def lineage(document: dict[str, Any], shards: dict[str, list[dict[str, Any]]]) -> str:
    """What the data follows from.

    Args:
        document: `lineage.json` of packed data.
        shards: of the manifest.
    """
    corpus = document["corpus"]
    decided_by = corpus["decided_by"]
    sources = [source["name"] for source in decided_by["sources"]]
    benchmarks = [benchmark["name"] for benchmark in decided_by["benchmarks"]]
    files = [
        (kind, names[number], form, content)
        for kind, names, entries in (
            ("source", sources, decided_by["files"]),
            ("benchmark", benchmarks, decided_by["benchmark_files"]),
        )
        for number, form, _, content in entries
    ]
    written = [
        (shard["file"], shard["rows"], shard["bytes"], shard["sha256"]) for kept in shards.values() for shard in kept
    ]
    return (
        paragraph("Whoever gives the same files, settings, seed and versions gets the same bytes.")
        + table(("", "rows", "corpus"), _versions(document))
        + details(f"{len(files):,} files read, by their SHA-256", table(("of a", "name", "format", "SHA-256"), files))
        + details(
            "Tokenizer, by the SHA-256 of its files", table(("file", "SHA-256"), sorted(corpus["tokenizer"].items()))
        )
        + details(
            f"{len(written):,} shards written, by their SHA-256", table(("file", "rows", "bytes", "SHA-256"), written)
        )
        + details("All that decides the rows", preformatted(json.dumps(document["decided_by"], indent=2)))
        + details("All that decides the corpus", preformatted(json.dumps(decided_by, indent=2)))
    )


def _versions(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Hashes and versions, of the packed data and of its corpus, which may be older."""
    pair = (document, document["corpus"])
    packages = sorted({name for part in pair for name in part["packages"]})
    return [
        ("hash", *(part["hash"] for part in pair)),
        ("format", *(str(part["decided_by"]["version"]) for part in pair)),
        *((name, *(part["project"][name] for part in pair)) for name in document["project"]),
        ("Python", *(part["python"] for part in pair)),
        *((name, *(part["packages"].get(name, "") for part in pair)) for name in packages),
    ]
