"""One HTML page on prepared data, to keep or to mail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ray_jobs.data.lineage import read_lineage
from ray_jobs.data.packed_directory import PackedDirectory
from ray_jobs.data.report_proof import certificate, lineage
from ray_jobs.html.charts import Bar, bars, histogram
from ray_jobs.html.page import page_of
from ray_jobs.html.parts import paragraph, spaced, table


def page(packed: PackedDirectory) -> str:
    """The page.

    Args:
        packed: what it tells of; document lengths are read from its rows, all else from its manifest and its lineage.
    """
    manifest = packed.manifest
    sections = [
        ("Rows", _rows(manifest["packing"])),
        ("Document lengths", _lengths(f"{packed.url}/train", manifest["packing"]["sequence_length"])),
        (f"The mix, by {manifest['mixture_by']}", _mix(manifest["mixture"])),
        ("Kept from training", _held_out(manifest["held_out"])),
        ("Trained tokens", _trained(manifest["mixture_sources"])),
        ("What came in", _sources(manifest["sources"])),
        ("Malformed rows, by reason", _malformed(manifest)),
        ("Rows that overlap with benchmarks", _contaminated(manifest["decontamination"])),
        ("Duplicates", _duplicates(manifest["sources"])),
        ("Duplicates between sources", _between_sources(manifest["dedup"])),
        ("What other thresholds would drop", _thresholds(manifest["dedup"])),
        ("Conversations that fit no row as they are", _fit(manifest)),
        ("Where every row went", _accounting(manifest["accounting"])),
        ("Certificate of packing", certificate(manifest)),
        ("Lineage", lineage(read_lineage(packed.url), manifest["shards"])),
    ]
    return page_of(f"Prepared data {manifest['hash']}", sections)


def _rows(packing: dict[str, Any]) -> str:
    return table(
        ("rows", "least possible", "tokens a row", "documents", "tokens", "fill", "trained"),
        [
            (
                *(packing[name] for name in ("rows", "bound_rows", "sequence_length", "documents", "tokens")),
                f"{packing['fill']:.2%}",
                f"{packing['trained_fraction']:.1%}",
            )
        ],
    )


def _lengths(url: str, row_length: int) -> str:
    """Histogram of documents by length, in bins that each are wider than the last by half a doubling."""
    lengths, categories = _documents(url)
    edges = np.unique(np.round(2 ** np.arange(4, np.log2(row_length) + 1, 0.5)).astype(int))
    edges = np.array([0, *edges[edges < row_length], row_length + 1])
    names = sorted(set(categories.tolist()))
    counts = [np.histogram(lengths[categories == name], edges)[0].tolist() for name in names]
    return histogram(edges.tolist(), counts, names)


def _documents(url: str) -> tuple[np.ndarray, np.ndarray]:
    """Length and category of every document of a directory of shards."""
    filesystem, directory = url_to_fs(url)
    lengths, categories = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=object)]
    for path in sorted(path for path in filesystem.ls(directory, detail=False) if path.endswith(".parquet")):
        with filesystem.open(path, "rb") as stream:
            table = pq.read_table(stream, columns=["document_lengths", "document_categories"]).combine_chunks()
        lengths.append(table["document_lengths"].combine_chunks().flatten().to_numpy())
        categories.append(table["document_categories"].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    return np.concatenate(lengths), np.concatenate(categories)


def _mix(mixture: list[dict[str, Any]]) -> str:
    lines = []
    for line in mixture:
        if line["asked_fraction"] is not None:
            lines.append(
                Bar(f"{line['category']}, asked", (line["asked_fraction"], 0), f"{line['asked_fraction']:.1%}")
            )
        note = f"{line['fraction']:.1%}, {line['tokens']:,} tokens, {line['examples']:,} examples"
        lines.append(Bar(f"{line['category']}, got", (0, line["fraction"]), note))
    return bars(lines, ("asked", "got"))


def _held_out(categories: list[dict[str, Any]]) -> str:
    columns = ("category", "examples", "tokens", "trained_tokens")
    lines = [[line[column] for column in columns] for line in categories]
    return table(map(spaced, columns), lines) if lines else ""


def _sources(sources: list[dict[str, Any]]) -> str:
    counts = list(sources[0])
    return table(map(spaced, counts), [[source[count] for count in counts] for source in sources])


def _malformed(manifest: dict[str, Any]) -> str:
    reasons = manifest["rejected_reasons"]
    if not reasons:
        return ""
    lines = [(line["source"], line["reason"], line["rows"]) for line in reasons]
    rarer = sum(source["rows_rejected"] for source in manifest["sources"]) - sum(line["rows"] for line in reasons)
    lines += [("", "for rarer reasons", rarer)] if rarer else []
    where = paragraph(f"Each with its file, row and beginning: {manifest['rejected_rows_url']}")
    return table(("source", "reason", "rows"), lines) + where


def _contaminated(decontamination: dict[str, Any] | None) -> str:
    if decontamination is None:
        return ""
    lines = [(benchmark["name"], benchmark["rows"]) for benchmark in decontamination["benchmarks"]]
    where = paragraph(
        f"{decontamination['ngram_words']} words in a row stand in both. "
        f"Each row with the words: {decontamination['rows_url']}"
    )
    return table(("benchmark", "rows"), lines) + (where if any(rows for _, rows in lines) else "")


def _duplicates(sources: list[dict[str, Any]]) -> str:
    parts = ("rows_kept", "exact_duplicates", "near_duplicates")
    lines = [Bar(source["name"], [source[part] for part in parts], _shares(source)) for source in sources]
    return bars(lines, ("kept", "exact duplicates", "near duplicates"))


def _shares(source: dict[str, Any]) -> str:
    gone = source["exact_duplicates"] + source["near_duplicates"]
    compared = gone + source["rows_kept"]
    return f"{gone:,} gone, {gone / compared:.1%}" if compared else "no row"


def _between_sources(dedup: dict[str, Any] | None) -> str:
    """Rows of one source that went, by the source of the twin that was kept."""
    pairs = {
        (line["dropped_source"], line["kept_source"]): line["exact_duplicates"] + line["near_duplicates"]
        for line in (dedup or {"between_sources": []})["between_sources"]
    }
    if not pairs:
        return ""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    lines = [(dropped, *(pairs.get((dropped, kept), 0) for kept in names)) for dropped in names]
    return table(("went, for a twin in …", *names), lines)


def _thresholds(dedup: dict[str, Any] | None) -> str:
    lines = [
        Bar(f"similarity {line['threshold']:g}", (line["estimated_dropped"],), f"about {line['estimated_dropped']:,}")
        for line in (dedup or {"thresholds": []})["thresholds"]
    ]
    return bars(lines, ("dropped",)) if lines else ""


def _trained(sources: list[dict[str, Any]]) -> str:
    lines = [
        Bar(source["name"], (source["trained_fraction"],), f"{source['trained_fraction']:.1%}")
        for source in sources
        if source["trained_fraction"] is not None
    ]
    return bars(lines, ("trained",), longest=1)


def _fit(manifest: dict[str, Any]) -> str:
    columns = ("whole", "truncated", "split", "pieces", "exchanges_too_long", "too_long", "no_trained_token")
    lines = [(source["name"], *(source[column] for column in columns)) for source in manifest["fit"]]
    if not any(any(line[2:]) for line in lines):
        return ""
    unfit = manifest["unfit_rows"]
    listed = [(row["source"], row["file"], row["row"], spaced(row["reason"]), row["tokens"]) for row in unfit]
    left_out = table(("source", "file", "row", "reason", "tokens"), listed)
    more = paragraph(f"The first of those that are left out; all of them: {manifest['unfit_rows_url']}")
    return table(("source", *map(spaced, columns)), lines) + (more + left_out if unfit else "")


def _accounting(stages: list[dict[str, Any]]) -> str:
    lines = [
        (
            stage["stage"],
            stage["rows_in"],
            stage["made"],
            stage["rows_out"],
            ", ".join(f"{count:,} {spaced(reason)}" for reason, count in stage["gone"].items() if count),
        )
        for stage in stages
    ]
    return table(("stage", "rows in", "made", "rows out", "gone"), lines)
