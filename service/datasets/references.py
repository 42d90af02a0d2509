"""`dataset://<id>` in a spec: found when a job is accepted, and replaced by the file's URL where its driver reads it.

The spec that is stored stays as it was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from service.spec.source import DATASET_ID

_REFERENCE = re.compile(rf"dataset://({DATASET_ID})")


def referenced_datasets(document: Any) -> dict[str, str]:
    """Ids of the datasets that a spec names, each with the path of the first field that does."""
    found: dict[str, str] = {}
    for field, dataset_id in _references(document, ""):
        found.setdefault(dataset_id, field)
    return found


def _references(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if match := _REFERENCE.fullmatch(value):
            yield field, match[1]
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _references(item, f"{field}.{name}".lstrip("."))
    elif isinstance(value, Sequence):
        for number, item in enumerate(value):
            yield from _references(item, f"{field}.{number}")


def with_urls(document: Any, url_of: Callable[[str], str]) -> Any:
    """The spec with each reference replaced by the URL of its dataset's file."""
    if isinstance(document, str):
        match = _REFERENCE.fullmatch(document)
        return url_of(match[1]) if match else document
    if isinstance(document, Mapping):
        return {name: with_urls(item, url_of) for name, item in document.items()}
    if isinstance(document, Sequence):
        return [with_urls(item, url_of) for item in document]
    return document
