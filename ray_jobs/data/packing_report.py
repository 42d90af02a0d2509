"""The tables of what was asked of the mixture, what came out, and how it was packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.data.accounting import RowCounts
from service.spec.data import DataSpec


@dataclass
class Written:
    """What was packed into one directory.

    Attributes:
        num_rows: packed rows.
        num_documents: that went in.
        bound_rows: rows that no packing could do without.
        documents: that came out, by category; a repeated one as often.
        tokens: likewise.
        trained: trained tokens, likewise.
        shards: of each file: `file`, `rows`, `bytes`, `sha256`.
        samples: rows that were compared with the tokenised parts (`ray_jobs.data.certificate`).
    """

    num_rows: int
    num_documents: int
    bound_rows: int
    documents: Counter[str]
    tokens: Counter[str]
    trained: Counter[str]
    shards: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def describe_mixture(
    data: DataSpec, train: Written, available: Mapping[str, int], stopped_by: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What was asked and what came out, by category.

    Args:
        data: the spec.
        train: what was written.
        available: conversations to choose from, by category.
        stopped_by: why no more of each was taken, if a mixture was asked for.
    """
    shares = {name: line.share for name, line in (data.mixture or {}).items()}
    amount = train.tokens if data.mixture_by == "tokens" else train.documents
    return [
        {
            "category": category,
            "asked_fraction": shares[category] / sum(shares.values()) if shares else None,
            "fraction": amount[category] / amount.total(),
            "stopped_by": stopped_by.get(category, "supply"),
            "available": available[category],
            "examples": train.documents[category],
            "tokens": train.tokens[category],
            "trained_tokens": train.trained[category],
        }
        for category in sorted(available)
    ]


def describe_sources(
    data: DataSpec,
    available: RowCounts,
    distinct: RowCounts,
    examples: RowCounts,
    *,
    tokens: Sequence[int],
    trained: Sequence[int],
) -> list[dict[str, Any]]:
    """What came of each source.

    Args:
        data: the spec.
        available: conversations, or pieces of long ones, to choose from, by source.
        distinct: that were chosen, each once.
        examples: that were chosen, each as often as it was.
        tokens: of the examples, by source.
        trained: those of them that are trained, by source.
    """
    return [
        {
            "name": source.name,
            "category": source.category,
            "weight": source.weight,
            "epochs": source.epochs,
            "available": available[number],
            "distinct": distinct[number],
            "examples": examples[number],
            "tokens": tokens[number],
            "trained_tokens": trained[number],
            "trained_fraction": trained[number] / tokens[number] if tokens[number] else None,
        }
        for number, source in enumerate(data.sources)
    ]


def describe_held_out(written: Written) -> list[dict[str, Any]]:
    """What is kept from training, by category."""
    return [
        {
            "category": name,
            "examples": count,
            "tokens": written.tokens[name],
            "trained_tokens": written.trained[name],
        }
        for name, count in sorted(written.documents.items())
    ]


def describe_packing(train: Written, sequence_length: int) -> dict[str, Any]:
    """How full the rows are."""
    tokens, trained = train.tokens.total(), train.trained.total()
    return {
        "rows": train.num_rows,
        "bound_rows": train.bound_rows,
        "sequence_length": sequence_length,
        "documents": train.num_documents,
        "tokens": tokens,
        "fill": tokens / (train.num_rows * sequence_length),
        "trained_tokens": trained,
        "trained_fraction": trained / tokens,
    }


def describe_certificate(
    packing: dict[str, Any], fit: Sequence[Mapping[str, Any]], train: Written, held_out: Written
) -> dict[str, Any]:
    """What packing did to the documents, and the proof of some rows.

    Args:
        packing: what `describe_packing` says.
        fit: conversations of each outcome, by source.
        train: rows to train on.
        held_out: rows kept from training.
    """
    return {
        **{name: packing[name] for name in ("rows", "bound_rows", "sequence_length", "fill")},
        "sources": [
            {
                "name": line["name"],
                "dropped": line["too_long"] + line["no_trained_token"],
                "truncated": line["truncated"],
                "split": line["split"],
            }
            for line in fit
        ],
        "samples": {"train": train.samples, "held_out": held_out.samples},
    }
