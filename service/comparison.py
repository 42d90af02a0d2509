"""How two jobs differ: in what was asked, in the data, in the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from service.spec.outcomes import Difference, JobDiff
from service.spec.resources import Job

Report = Mapping[str, Any]

_DATA = ("hash", "corpus", "sources", "dedup", "held_out", "mixture_by", "mixture", "mixture_sources", "packing")
_RESULTS = ("model", "train", "held_out", "evaluation", "export")
_CURVES = ("learning_rate_curve", "loss_curve")
_PLACES = ("path", "url", "job_id")
"""Where something lies; always different, and no result."""


def compare_jobs(left: Job, right: Job, left_report: Report | None, right_report: Report | None) -> JobDiff:
    """All that differs between two jobs.

    Args:
        left: one of them.
        right: the other.
        left_report: None while it has none; then data and results are not compared.
        right_report: likewise.
    """
    missing = [job.id for job, report in ((left, left_report), (right, right_report)) if report is None]
    first, second = (left_report, right_report) if not missing else ({}, {})
    data = [{name: (report or {}).get("data", {}).get(name) for name in _DATA} for report in (first, second)]
    results = [{name: (report or {}).get(name) for name in _RESULTS} for report in (first, second)]
    return JobDiff(
        left=left.id,
        right=right.id,
        spec=differences(left.spec, right.spec),
        data=differences(*data),
        results=differences(*results),
        notes=[f"{job_id} has no report, so data and results are not compared" for job_id in missing],
    )


def differences(left: Any, right: Any) -> list[Difference]:
    """What differs between two JSON documents, by path."""
    first, second = dict(_leaves("", left)), dict(_leaves("", right))
    paths = dict.fromkeys((*first, *second))
    return [
        Difference(path=path, left=first.get(path), right=second.get(path), change=_change(first, second, path))
        for path in paths
        if first.get(path) != second.get(path)
    ]


def _change(left: Mapping[str, Any], right: Mapping[str, Any], path: str) -> float | None:
    values = [side.get(path) for side in (left, right)]
    first, second = (value if _is_number(value) else None for value in values)
    return None if first is None or second is None else second - first


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Plain values by dotted path; an empty list or mapping is one itself."""
    if isinstance(value, Mapping) and value:
        named = [(str(key), item) for key, item in value.items() if key not in _CURVES and key not in _PLACES]
    elif isinstance(value, list) and value:
        named = [(_name(number, item), item) for number, item in enumerate(value)]
    else:
        yield prefix, value
        return
    for name, item in named:
        yield from _leaves(f"{prefix}.{name}" if prefix else name, item)


def _name(number: int, item: Any) -> str:
    """An item's own name, so that a source that was put in between does not make all others differ."""
    for key in ("name", "category", "task") if isinstance(item, Mapping) else ():
        if isinstance(item.get(key), str):
            return str(item[key])
    return str(number)
