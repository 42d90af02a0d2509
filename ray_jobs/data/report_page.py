"""One HTML page on prepared data, to keep or to mail: it needs no network, runs no script, and escapes every word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ray_jobs.data.charts import Bar, bars, histogram
from ray_jobs.data.packed_directory import PackedDirectory

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse}td,th{padding:.15rem .8rem;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left}svg{width:100%;max-width:760px;display:block}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:1rem;padding:0;font-size:.85rem}
.legend li::before{content:"";display:inline-block;width:.8em;height:.8em;margin-right:.4em;background:var(--colour)}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(packed: PackedDirectory) -> str:
    """The page.

    Args:
        packed: what it tells of; document lengths are read from its rows, all else from its manifest.
    """
    manifest = packed.manifest
    sections = [
        ("Rows", _rows(manifest["packing"])),
        ("Document lengths", _lengths(f"{packed.url}/train", manifest["packing"]["sequence_length"])),
        (f"The mix, by {manifest['mixture_by']}", _mix(manifest["mixture"])),
        ("Duplicates", _duplicates(manifest["sources"])),
        ("Duplicates between sources", _between_sources(manifest.get("dedup"))),
        ("What other thresholds would drop", _thresholds(manifest.get("dedup"))),
        ("Trained tokens", _trained(manifest["mixture_sources"])),
        ("Conversations that fit no row as they are", _fit(manifest["fit"])),
        ("Where every row went", _accounting(manifest["accounting"])),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>{content}" for title, content in sections if content)
    title = f"Prepared data {manifest['hash']}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _table(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(_shown(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _shown(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _rows(packing: dict[str, Any]) -> str:
    return _table(
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
        for line in (dedup or {}).get("between_sources", [])
    }
    if not pairs:
        return ""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    lines = [(dropped, *(pairs.get((dropped, kept), 0) for kept in names)) for dropped in names]
    return _table(("went, for a twin in …", *names), lines)


def _thresholds(dedup: dict[str, Any] | None) -> str:
    lines = [
        Bar(f"similarity {line['threshold']:g}", (line["estimated_dropped"],), f"about {line['estimated_dropped']:,}")
        for line in (dedup or {}).get("thresholds", [])
    ]
    return bars(lines, ("dropped",)) if lines else ""


def _trained(sources: list[dict[str, Any]]) -> str:
    lines = [
        Bar(source["name"], (source["trained_fraction"],), f"{source['trained_fraction']:.1%}")
        for source in sources
        if source["trained_fraction"] is not None
    ]
    return bars(lines, ("trained",), longest=1)


def _fit(sources: list[dict[str, Any]]) -> str:
    columns = ("truncated", "split", "pieces", "exchanges_too_long", "too_long", "no_trained_token")
    lines = [(source["name"], *(source[column] for column in columns)) for source in sources]
    is_any = any(any(line[1:]) for line in lines)
    return _table(("source", *(column.replace("_", " ") for column in columns)), lines) if is_any else ""


def _accounting(stages: list[dict[str, Any]]) -> str:
    lines = [
        (
            stage["stage"],
            stage["rows_in"],
            stage["made"],
            stage["rows_out"],
            ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in stage["gone"].items() if count),
        )
        for stage in stages
    ]
    return _table(("stage", "rows in", "made", "rows out", "gone"), lines)
